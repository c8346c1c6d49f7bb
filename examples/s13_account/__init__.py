"""An account as a virtual object."""
