"""External and internal signals."""
