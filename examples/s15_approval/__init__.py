"""A purchase that requires approval."""
