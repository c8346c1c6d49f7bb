"""Calls the operations of an API with generated requests and checks responses against its OpenAPI document."""

from __future__ import annotations

from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = settings.default.max_examples // 8

# Not fuzzed: operations that end the session or change its rights, and streams.
EXCLUDED = {
    "sign_out",
    "sign_out_everywhere",
    "change_password",
    "change_user",
    "set_password",
    "end_sessions",
    "watch_alerts",
    "watch_saga",
}


def fuzz_api(description: dict[str, Any], url: str, headers: dict[str, str]) -> dict[str, set[int]]:
    """Call all operations with valid and invalid requests, and return the statuses by operation."""
    operations = [found.ok() for found in schemathesis.openapi.from_dict(description).get_all_operations()]
    by_name = {each.definition.raw["operationId"]: each for each in operations}
    assert by_name.keys() >= EXCLUDED
    with requests.Session() as session:
        session.trust_env = False
        return {
            name: {
                status
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
                if mode is GenerationMode.POSITIVE or _accepts_input(operation)
                for status in _fuzz(operation, mode, url, session, headers)
            }
            for name, operation in by_name.items()
            if name not in EXCLUDED
        }


def _fuzz(
    operation: Any, mode: GenerationMode, url: str, session: requests.Session, headers: dict[str, str]
) -> set[int]:
    """Call an operation with generated valid or invalid requests, and return the statuses."""
    statuses: set[int] = set()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def call(case: Any) -> None:
        answer = case.call_and_validate(base_url=url, session=session, headers=headers, checks=CHECKS, timeout=60)
        statuses.add(answer.status_code)

    call()
    return statuses


def _accepts_input(operation: Any) -> bool:
    return bool(operation.body) or any(True for _ in operation.iter_parameters())
