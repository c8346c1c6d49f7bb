"""Several things at once, with results in the order of the questions."""
