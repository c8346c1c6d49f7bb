"""Who works with the console: persons, their passwords, roles and sessions, in the console's own database."""
