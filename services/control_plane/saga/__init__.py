"""The saga service: rolls back sagas independently of their orchestrators."""
