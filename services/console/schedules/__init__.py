"""Schedules and the operator actions on them."""
