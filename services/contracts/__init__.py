"""What control plane and data plane know of each other: messages and the targets that take them, no code."""
