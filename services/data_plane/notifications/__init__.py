"""Notifications: the service that tells travellers how it went."""
