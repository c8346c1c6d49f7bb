"""What perdure costs: the same work through the library and by hand on the SDK, side by side."""
