"""Terminal and retried errors."""
