"""Approvals: inbox, votes, delegation and links."""
