"""Logs that are silent during replay, and observability hooks."""
