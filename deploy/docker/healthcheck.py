"""Health check of a process in this container: exit code 0 if it responds with 200, else 1 and the reason on one line.

The image contains no curl. `python -IS healthcheck.py URL` takes 50 ms, since it imports few modules.
"""

from __future__ import annotations

import sys
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit


def check(url: str, timeout: float = 3.0) -> str | None:
    """Return the reason for a failure, or None.

    Args:
        url: Address of the check, for example ``http://127.0.0.1:9081/ready``.
        timeout: Time limit in seconds.
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
