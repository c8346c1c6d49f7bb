"""A saga that books a trip."""
