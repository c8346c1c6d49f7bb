"""Entry point of ``python -m perdure.engine.proxy``."""

from __future__ import annotations

import sys

from perdure.engine.proxy.process import serve_proxy
from perdure.engine.proxy.settings import ProxySettings
from perdure.errors import ConfigurationError

if __name__ == "__main__":
    try:
        sys.exit(serve_proxy(ProxySettings.read()))
    except ConfigurationError as error:
        sys.exit(f"engine proxy: {error}")
