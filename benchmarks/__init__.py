"""Benchmarks of the library's overhead over the SDK."""
