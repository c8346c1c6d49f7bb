"""Reservation of ports and leases of free ports."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perdure._runtime.ports import ensure_free, free_ports
from perdure.errors import ConfigurationError


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_reject_invalid_port(port):
    with pytest.raises(ConfigurationError, match=rf"port {port} \(port\) is not a port: set port to 1 to 65535"):
        ensure_free("127.0.0.1", port, "port")


def test_reject_taken_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = int(holder.getsockname()[1])
        with pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 is taken"):
            ensure_free("127.0.0.1", port, "PERDURE_X_PORT")
    ensure_free("127.0.0.1", free_ports(1)[0], "PERDURE_X_PORT")


def test_free_ports_lie_below_ephemeral_ports():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(ephemeral.read_text().split()[0]) if ephemeral.exists() else 49_152
    for port in ports:
        assert port < lowest
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_free_ports_skip_a_port_in_use():
    # The lease of another process follows the last port of a block.
    before = next(port for port in iter(lambda: free_ports(1)[0], 0) if port % 50 != 49)
    with socket.socket() as other:
        other.bind(("127.0.0.1", before + 1))
        assert free_ports(1) != [before + 1]


def test_processes_get_different_free_ports():
    ask = "import sys; from perdure._runtime.ports import free_ports; print(*free_ports(60), flush=True); "
    ask += "sys.stdin.read()"
    asked = [
        subprocess.Popen([sys.executable, "-c", ask], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    try:
        with ThreadPoolExecutor() as readers:
            answers = list(readers.map(lambda each: each.stdout.readline().split(), asked))
    finally:
        for each in asked:
            each.communicate()
    ports = [port for answer in answers for port in answer] + [str(port) for port in free_ports(60)]
    assert len(set(ports)) == len(ports) == 5 * 60


_FORK = """
import os
from perdure._runtime.ports import free_ports
free_ports(1)
if (child := os.fork()) == 0:
    print(*free_ports(40), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(*free_ports(40), flush=True)
"""


def test_forked_process_gets_other_free_ports():
    answer = subprocess.run([sys.executable, "-c", _FORK], capture_output=True, text=True, check=True)
    theirs, ours = (set(line.split()) for line in answer.stdout.splitlines())
    assert (len(theirs), len(ours)) == (40, 40)
    assert not theirs & ours
