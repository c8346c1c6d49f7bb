"""Tests of services on a real restate-server, without Docker; see `perdure.testing.plugin`."""

from __future__ import annotations

from perdure.testing.background import BackgroundLoop
from perdure.testing.rollbacks import wait_for_rollback
from perdure.testing.served import Mode, Restate, RestateEnvironment, ServedApp
from perdure.testing.server import RestateServer

__all__ = ["BackgroundLoop", "Mode", "Restate", "RestateEnvironment", "RestateServer", "ServedApp", "wait_for_rollback"]
