"""The JSON API under ``/api``: everything that the pages do."""
