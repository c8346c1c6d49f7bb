"""Approvals: people decide, durably: who may, how many must, until when, and who said what."""
