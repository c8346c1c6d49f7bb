"""Telemetry settings of containers and pods: service names, and sampling by the engine."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml

from services.runtime.topology import CONSOLE, SERVICES
from tests.unit.deploy.test_kubernetes import ROOT, of, pods, raw

CHECKOUT = ROOT.parents[1]
NAMES = {spec.name for spec in SERVICES}
FOLLOW_ENGINE = {"OTEL_TRACES_SAMPLER": "parentbased_always_off"}
SAMPLE_ALL = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1"}
ON_KUBERNETES = {**SAMPLE_ALL, "OTEL_TRACES_SAMPLER_ARG": "0.1"}


class _Loader(yaml.SafeLoader):
    """YAML loader that accepts the tags of compose files."""


_Loader.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


def composed(path: str) -> dict[str, Any]:
    text = re.sub(r"\$\{\w+:-([^${}]*)\}", r"\1", (CHECKOUT / path).read_text())
    services: dict[str, Any] = yaml.load(text, _Loader)["services"]  # noqa: S506 - a safe loader with one more tag
    return {name: service.get("environment", {}) for name, service in services.items()}


def sampled(variables: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in variables.items() if name.startswith("OTEL_TRACES_SAMPLER")}


def test_compose_sets_names_and_sampling() -> None:
    told = composed("docker-compose.yml")
    for name in (*NAMES, CONSOLE):
        assert told[name]["OTEL_SERVICE_NAME"] == name
        assert sampled(told[name]) == (SAMPLE_ALL if name == CONSOLE else FOLLOW_ENGINE)
    assert sampled(told["restate"]) == SAMPLE_ALL
    assert "OTEL_SERVICE_NAME" not in told["restate"]  # its spans have the service name Restate
    nodes = composed("deploy/cluster/compose.yml")
    assert [sampled(nodes[name]) for name in ("restate", "restate-2", "restate-3")] == [SAMPLE_ALL] * 3


def test_kubernetes_sets_names_and_sampling() -> None:
    manifests = raw()
    assert sampled(of(manifests, "ConfigMap")["platform"]["data"]) == FOLLOW_ENGINE
    for name in (*NAMES, CONSOLE):
        variables = {each["name"]: each.get("value") for each in pods(manifests)[name]["containers"][0]["env"]}
        assert variables["OTEL_SERVICE_NAME"] == name
        assert sampled(variables) == (ON_KUBERNETES if name == CONSOLE else {})
    (engine,) = of(manifests, "RestateCluster").values()
    assert sampled({each["name"]: each.get("value") for each in engine["spec"]["compute"]["env"]}) == ON_KUBERNETES


def test_image_resource_contains_version() -> None:
    version = tomllib.loads((CHECKOUT / "services" / "pyproject.toml").read_text())["project"]["version"]
    said = f"OTEL_RESOURCE_ATTRIBUTES=service.namespace=perdure,service.version={version}\n"
    assert said in (CHECKOUT / "Dockerfile").read_text()


def test_kubernetes_alerts_equal_prometheus_rules() -> None:
    (rules,) = of(raw(), "PrometheusRule").values()
    assert rules["spec"] == yaml.safe_load((CHECKOUT / "deploy" / "prometheus" / "rules" / "perdure.yml").read_text())


def test_kubernetes_scrape_labels_match_queries() -> None:
    jobs = set()
    for monitor in of(raw(), "ServiceMonitor").values():
        (endpoint,) = monitor["spec"]["endpoints"]
        labels = {each["targetLabel"]: each.get("replacement") for each in endpoint["relabelings"]}
        jobs.add(labels["job"])
        assert "process" in labels
    assert jobs == {"perdure", "restate"}
