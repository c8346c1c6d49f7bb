from tests.unit.services.console.conftest import console, open_console

__all__ = ["console", "open_console"]
