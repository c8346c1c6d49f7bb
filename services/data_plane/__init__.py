"""The data plane: business logic for seats, rooms, payments and notifications, and an audit of its database."""
