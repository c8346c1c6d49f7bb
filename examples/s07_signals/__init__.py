"""Signals from outside, and signals inside one workflow."""
