"""Tools for workflows."""
