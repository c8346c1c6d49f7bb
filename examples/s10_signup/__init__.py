"""A sign-up with a verification mail."""
