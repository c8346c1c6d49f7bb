"""Held steps and the operator actions on them."""
