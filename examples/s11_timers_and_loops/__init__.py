"""Reminders until somebody reacts, and schedules."""
