"""Random values and times that survive a replay."""
