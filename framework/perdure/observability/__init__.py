"""Logs, metrics, traces and hooks of a process."""
