"""Catalogue of the handlers that are registered with the engine, and of the calls among them that would fail.

A call of a missing handler is retried for ever, and a call of a handler with other types fails at each execution. The
catalogue finds both before a call is made, from the types that the engine has discovered.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, Literal

from perdure._runtime.admin_url import admin_url
from perdure._runtime.json_schemas import mismatch, schema_of_value
from perdure.engine.admin import AdminClient
from perdure.serving.declarations import PLATFORM_METADATA, TARGETS_METADATA, describe
from perdure.targets import Target

SINGLETONS: Final = frozenset({"Approvals", "DeadLetters", "Rollbacks", "Schedules"})
"""Services that one engine can have once: a second one would take over the work of the first."""

Field = Literal["target", "key", "payload"]


@dataclass(frozen=True)
class Problem:
    """A target that does not fit the registered handlers.

    Args:
        target: The handler, as ``Service/handler``.
        field: What does not fit: the target, its key, or the payload.
        text: What is wrong.
        missing: The service is not registered, perhaps not yet.
    """

    target: str
    field: Field
    text: str
    missing: bool = False

    def __str__(self) -> str:
        return self.text


class Catalog:
    """The registered handlers.

    Args:
        services: The services, as `AdminClient.services` returns them.
    """

    def __init__(self, services: Sequence[Mapping[str, Any]]) -> None:
        self._services = {str(service["name"]): service for service in services}

    def problems(self, services: Collection[str] | None = None) -> list[Problem]:
        """Return the problems of the targets that services call.

        Args:
            services: The calling services; all of them by default.
        """
        found: dict[str, Problem] = {}
        for name, service in sorted(self._services.items()):
            if services is None or name in services:
                for target in _declared_targets(service):
                    if (problem := self._problem(target)) is not None:
                        text = f"{name} calls {problem.target}, but {problem.text}"
                        found.setdefault(text, Problem(problem.target, problem.field, text, problem.missing))
        return list(found.values())

    def problem(self, target: Target[Any, Any, Any]) -> Problem | None:
        """Return why calls of a target would fail, or None."""
        return self._problem(describe(target))

    def request_problem(self, service: str, handler: str, key: str | None, payload: Any) -> Problem | None:
        """Return why a request would fail, or None.

        Args:
            service: The service.
            handler: The handler.
            key: The key; None for the handler of a service.
            payload: The request as JSON; None for no input.
        """
        schema = {"type": "null"} if payload is None else schema_of_value(payload)
        return self._problem({"service": service, "handler": handler, "keyed": key is not None, "input": schema})

    def _problem(self, target: Mapping[str, Any]) -> Problem | None:
        service, handler = str(target["service"]), str(target["handler"])
        name = f"{service}/{handler}"
        registered = self._services.get(service)
        if registered is None:
            return Problem(name, "target", f"no service '{service}' is registered: deploy and register it", True)
        known = {str(each["name"]): each for each in registered["handlers"]}
        if handler not in known:
            return Problem(name, "target", f"'{service}' has no handler '{handler}', only {', '.join(sorted(known))}")
        kind = str(registered.get("ty"))
        if target["keyed"] == (kind == "Service"):
            rule = "have no key" if kind == "Service" else "require a key"
            return Problem(name, "key", f"'{service}' is a {kind}, whose handlers {rule}")
        difference = _difference(target, known[handler])
        return None if difference is None else Problem(name, "payload", difference)


def _difference(target: Mapping[str, Any], handler: Mapping[str, Any]) -> str | None:
    if found := _input_difference(handler, target.get("input", True)):
        return f"its input does not fit: {found}"
    if found := mismatch(target.get("output", True), handler.get("output_json_schema", True)):
        return f"its output does not fit: {found}"
    return None


def _input_difference(handler: Mapping[str, Any], written: Any) -> str | None:
    if "input_json_schema" in handler:
        read = handler["input_json_schema"]
        # For a type such as ``int | None``, the SDK publishes the schema of int.
        if written == {"type": "null"} and isinstance(read, dict) and read.keys() <= {"type", "items"}:
            return None
        optional = isinstance(written, dict) and {"type": "null"} in written.get("anyOf", ())
        others = [each for each in written["anyOf"] if each != {"type": "null"}] if optional else []
        return mismatch(read, {**written, "anyOf": others} if optional else written)
    # A handler without input, or one of which the engine does not know the type.
    if str(handler.get("input_description", "")) not in ("none", "*/*") or written in (True, {}, {"type": "null"}):
        return None
    return "it takes none"


async def find_problem(service: str, handler: str, key: str | None, payload: Any) -> tuple[Field, str] | None:
    """Return the field and the reason why a request would fail, or None. Without PERDURE_ADMIN_URL, return None.

    Raises:
        EngineError: The admin API does not answer.
    """
    if (url := admin_url()) is None:
        return None
    async with AdminClient(url) as admin:
        catalog = Catalog(await admin.services())
    problem = catalog.request_problem(service, handler, key, payload)
    return None if problem is None else (problem.field, f"{problem.target}: {problem.text}")


def conflicts(deployments: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the singleton services that several platforms serve.

    Two deployments belong to one platform if they name the same one (PERDURE_PLATFORM) or, without names, if one serves
    all services of the other one, as a new version of it does.

    Args:
        deployments: The deployments with the metadata of their services, as `AdminClient.deployment` returns them.
    """
    for name in sorted(SINGLETONS):
        hosts = [each for each in deployments if name in _names(each)]
        for one, two in combinations(hosts, 2):
            platforms = _platform(one, name), _platform(two, name)
            names = _names(one), _names(two)
            if platforms[0] != platforms[1] or (
                platforms[0] is None and not (names[0] <= names[1] or names[1] <= names[0])
            ):
                places = [f"{one['uri']} ({platforms[0] or 'unnamed'})", f"{two['uri']} ({platforms[1] or 'unnamed'})"]
                yield (
                    f"different platforms serve {name}, at {places[0]} and {places[1]}: give each platform an engine "
                    "of its own, or remove the deployment that is gone"
                )


def _platform(deployment: Mapping[str, Any], name: str) -> str | None:
    service = next(each for each in deployment["services"] if each["name"] == name)
    platform = (service.get("metadata") or {}).get(PLATFORM_METADATA)
    return None if platform is None else str(platform)


def _names(deployment: Mapping[str, Any]) -> set[str]:
    return {str(service["name"]) for service in deployment.get("services", [])}


def _declared_targets(service: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    try:
        declared = json.loads((service.get("metadata") or {}).get(TARGETS_METADATA, "[]"))
    except ValueError:  # metadata of another library
        return []
    return [each for each in declared if isinstance(each, dict) and {"service", "handler", "keyed"} <= each.keys()]
