"""Side effects in runs."""
