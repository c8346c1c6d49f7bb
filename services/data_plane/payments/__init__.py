"""Payments: the service that holds the ledger."""
