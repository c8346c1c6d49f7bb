"""Hotels: the service that holds rooms."""
