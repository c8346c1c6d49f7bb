"""The data plane: what really happens to seats, rooms, money and messages, in a database that can be audited."""
