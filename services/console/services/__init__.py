"""Deployments, services and handlers."""
