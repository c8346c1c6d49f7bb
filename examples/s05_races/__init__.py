"""Waits with a timeout."""
