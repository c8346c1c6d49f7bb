"""Sagas: steps recorded before they act, and a rollback that survives crash, cancel and kill."""
