"""Approvals service."""
