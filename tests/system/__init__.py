"""System tests: the whole platform under scenarios, faults and attacks."""
