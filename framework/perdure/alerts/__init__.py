"""Alerts: conditions that need attention, sent to a webhook."""
