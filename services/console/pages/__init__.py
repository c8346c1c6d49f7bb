"""The pages: thin routes over the same reads and acts as the API."""
