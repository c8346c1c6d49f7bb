"""Ask a process of this container if it is well: exit code 0 when it answers with 200, else 1 and a line that says why.

The image has no curl. This takes a twentieth of a second, for it imports little: `python -IS healthcheck.py URL`.
"""

from __future__ import annotations

import sys
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit


def check(url: str, timeout: float = 3.0) -> str | None:
    """Return what is wrong, or None.

    Args:
        url: Where to ask, ``http://127.0.0.1:9081/ready``.
        timeout: How long it may take, in seconds.
    """
    where = urlsplit(url)
    connection = HTTPConnection(where.hostname or "127.0.0.1", where.port, timeout=timeout)
    try:
        connection.request("GET", where.path or "/")
        response = connection.getresponse()
        body = response.read(1000).decode(errors="replace")
    except (OSError, HTTPException) as error:
        return f"{url} does not answer: {error}"
    finally:
        connection.close()
    return None if response.status == 200 else f"{url} answers {response.status}: {body}"


if __name__ == "__main__":
    sys.exit(check(sys.argv[1]))
