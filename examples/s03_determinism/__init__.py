"""Random values and times that a replay sees again."""
