"""Durable human approvals with quorum, escalation, delegation and a verifiable audit log."""
