"""What the console reads from the engine and tells it to do, one module a subject; pages and API share them."""
