"""Flights: the service that holds seats."""
