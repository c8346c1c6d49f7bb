"""Authentication and authorisation: users, passwords, sessions, roles, API keys."""
