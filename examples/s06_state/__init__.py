"""Typed state, guarded against writes from where they may not come."""
