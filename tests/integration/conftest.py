from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from perdure.observability.logging import LoggingConfig, configure_logging
from perdure.security import SigningMode, SigningRules, TrustedKeys, set_signing_rules
from perdure.testing import Restate
from tests.integration.actor_keys import ISSUER
from tests.integration.saga_bench import Bench
from tests.support import Recording


@pytest.fixture
async def bench(restate: Restate, did: Recording) -> AsyncIterator[Bench]:
    """A bench for one orchestration."""
    bench = Bench(restate, did)
    yield bench
    await bench.close()


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """The log, in JSON."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging(LoggingConfig(level="debug", format="json"), stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def signed_acts() -> Iterator[None]:
    """Require actions signed with keys of `actor_keys`."""
    set_signing_rules(SigningRules(mode=SigningMode.SIGNED, trusted_keys=TrustedKeys(issuers=(ISSUER.public,))))
    yield
    set_signing_rules(None)
