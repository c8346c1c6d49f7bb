"""Keys that make the same request the same."""
