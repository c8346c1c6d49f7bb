"""A service that only its engine can call."""
