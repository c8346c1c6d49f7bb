"""A trip that is booked, or leaves no trace."""
