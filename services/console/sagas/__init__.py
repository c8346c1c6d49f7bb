"""Sagas: list, and one saga with its timeline."""
