"""What stands between a request and a route: who asks, by which right, from where."""
