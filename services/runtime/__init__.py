"""Entry points of the platform: run, serve, register, drain, migrate and audit."""
