"""The two planes: the control plane decides what happens, the data plane does it."""
