"""Run services and an engine on one machine during development."""
