"""Telemetry settings of containers and pods: service names, and sampling by the engine."""

from __future__ import annotations

import tomllib
from typing import Any

import yaml

from services.runtime.topology import CONSOLE
from tests.unit.deploy.test_kubernetes import of, pods, raw
from tests.unit.deploy.test_registry import NAMES, ROOT, composed

FOLLOW_ENGINE = {"OTEL_TRACES_SAMPLER": "parentbased_always_off"}
SAMPLE_ALL = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1"}
ON_KUBERNETES = {**SAMPLE_ALL, "OTEL_TRACES_SAMPLER_ARG": "0.1"}


def sampled(variables: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in variables.items() if name.startswith("OTEL_TRACES_SAMPLER")}


def test_compose_sets_names_and_sampling() -> None:
    environments = {name: each.get("environment", {}) for name, each in composed("docker-compose.yml").items()}
    for name in (*NAMES, CONSOLE):
        assert environments[name]["OTEL_SERVICE_NAME"] == name
        assert sampled(environments[name]) == (SAMPLE_ALL if name == CONSOLE else FOLLOW_ENGINE)
    assert sampled(environments["restate"]) == SAMPLE_ALL
    assert "OTEL_SERVICE_NAME" not in environments["restate"]  # its spans have the service name Restate
    nodes = composed("deploy/cluster/compose.yml")
    assert [sampled(nodes[name]["environment"]) for name in ("restate", "restate-2", "restate-3")] == [SAMPLE_ALL] * 3


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
    version = tomllib.loads((ROOT / "services" / "pyproject.toml").read_text())["project"]["version"]
    said = f"OTEL_RESOURCE_ATTRIBUTES=service.namespace=perdure,service.version={version}\n"
    assert said in (ROOT / "Dockerfile").read_text()


def test_kubernetes_alerts_equal_prometheus_rules() -> None:
    (rules,) = of(raw(), "PrometheusRule").values()
    assert rules["spec"] == yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules" / "perdure.yml").read_text())


def test_kubernetes_scrape_labels_match_queries() -> None:
    jobs = set()
    for monitor in of(raw(), "ServiceMonitor").values():
        (endpoint,) = monitor["spec"]["endpoints"]
        labels = {each["targetLabel"]: each.get("replacement") for each in endpoint["relabelings"]}
        jobs.add(labels["job"])
        assert "process" in labels
    assert jobs == {"perdure", "restate"}
