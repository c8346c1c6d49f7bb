"""The orchestrator: books trips."""
