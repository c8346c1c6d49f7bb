"""The console: HTML pages and a JSON API for operators, approvers and administrators.

The console is a client of the engine's ingress and admin API. Its own database holds users, sessions and API keys. Each
feature is a package with routes, service, schemas and templates.
"""
