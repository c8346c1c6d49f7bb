"""Messages and targets that control plane and data plane share."""
