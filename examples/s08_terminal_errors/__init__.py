"""Errors that end an invocation, and errors that are tried again."""
