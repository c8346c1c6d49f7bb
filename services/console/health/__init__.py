"""Overview and alerts."""
