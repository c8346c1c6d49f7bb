"""System tests: chaos."""
