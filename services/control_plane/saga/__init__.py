"""The saga service: rolls back sagas, whatever happened to their orchestrators."""
