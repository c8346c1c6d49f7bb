"""Private parts of perdure. Nothing here is meant to be imported by applications."""
