"""A sign-up that waits for a click in a mail."""
