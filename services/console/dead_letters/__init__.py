"""Dead letters and the operator actions on them."""
