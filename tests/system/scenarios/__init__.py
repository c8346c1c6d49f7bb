"""System tests: scenarios."""
