"""Waiting for an answer, but not for ever."""
