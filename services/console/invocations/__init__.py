"""Invocations and the operator actions on them."""
