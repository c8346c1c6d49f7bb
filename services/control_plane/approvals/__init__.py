"""The approvals service: keeps what people are asked, and what they decided."""
