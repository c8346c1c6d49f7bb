"""A port that can't be had is said to be so before anything is started on it."""

from __future__ import annotations

import socket

import pytest

from perdure.errors import ConfigurationError
from perdure.ports import ensure_free, free_ports


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_port_that_is_none_is_refused_and_not_taken_for_another(port):
    with pytest.raises(ConfigurationError, match=rf"port {port} \(port\) is none: set port to one of 1 to 65535"):
        ensure_free("127.0.0.1", port, "port")


def test_a_taken_port_is_refused_and_a_free_one_is_not():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = int(holder.getsockname()[1])
        with pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 is taken"):
            ensure_free("127.0.0.1", port, "PERDURE_X_PORT")
    ensure_free("127.0.0.1", free_ports(1)[0], "PERDURE_X_PORT")
