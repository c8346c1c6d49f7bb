"""The control plane: decides what happens. It reaches the outside world only by calling the data plane."""
