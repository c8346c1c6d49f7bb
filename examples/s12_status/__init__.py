"""A workflow that tells how far it is."""
