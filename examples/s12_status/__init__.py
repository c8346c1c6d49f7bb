"""A workflow with a status."""
