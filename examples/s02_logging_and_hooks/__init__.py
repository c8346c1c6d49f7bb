"""Logs that are silent on replay, and hooks that see what happens."""
