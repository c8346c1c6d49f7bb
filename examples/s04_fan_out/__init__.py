"""Concurrent calls with results in the order of the input."""
