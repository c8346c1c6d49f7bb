"""A purchase that waits for somebody to approve it."""
