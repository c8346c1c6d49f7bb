"""The console: pages and a JSON API for the people who look after the platform.

It is a client of the engine's ingress and admin API, and knows no service's database. What it keeps for itself, persons
and their sessions, is in a database of its own.
"""
