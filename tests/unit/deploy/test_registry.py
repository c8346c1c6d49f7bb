"""The registry of services agrees with folders, compose files, Prometheus, dashboards and Kubernetes manifests."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from perdure.dev import ENGINE_PROXY
from services.runtime.topology import SERVICES, ServiceSpec
from tests.unit.deploy.test_kubernetes import of, pods, raw

ROOT = Path(__file__).parents[3]
NAMES = {spec.name for spec in SERVICES}
ADDRESSES = {f"--at={spec.name}=http://{spec.name}:{spec.port}" for spec in SERVICES}
COMPOSE_FILES = ("docker-compose.yml", "docker-compose.lean.yml", "deploy/cluster/compose.yml")
PROMETHEUS = ROOT / "deploy" / "prometheus"
ENGINE_JOB = "restate"

each_service = pytest.mark.parametrize("spec", SERVICES, ids=lambda spec: spec.name)


class _Loader(yaml.SafeLoader):
    """YAML loader that accepts the tags of compose files."""


_Loader.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


def composed(path: str) -> dict[str, Any]:
    """Return the services of a compose file, with the default values of variables."""
    text = re.sub(r"\$\{\w+:-([^${}]*)\}", r"\1", (ROOT / path).read_text())
    return dict(yaml.load(text, _Loader)["services"])  # noqa: S506 - a safe loader with one more tag


def scrape_jobs() -> dict[str, dict[str, Any]]:
    jobs = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    return {job["job_name"]: job for job in jobs}


def test_each_service_folder_is_registered() -> None:
    planes = {"data": ("data_plane", "service"), "control": ("control_plane", "app")}
    found = {
        (plane, path.parent.name, f"services.{folder}.{path.parent.name}.{module}")
        for plane, (folder, module) in planes.items()
        for path in (ROOT / "services" / folder).glob(f"*/{module}.py")
    }
    assert found == {(spec.plane, spec.name, spec.module) for spec in SERVICES}


@each_service
def test_registered_module_serves_named_services(spec: ServiceSpec) -> None:
    assert callable(import_module(spec.module).main)
    assert spec.port_setting == f"PERDURE_{spec.name.upper()}_PORT"


def test_ports_and_engine_services_are_unique() -> None:
    assert len({spec.port for spec in SERVICES}) == len(SERVICES)
    served = [name for spec in SERVICES for name in spec.serves]
    assert len(set(served)) == len(served)


@each_service
def test_compose_runs_service_on_its_port(spec: ServiceSpec) -> None:
    container = composed("docker-compose.yml")[spec.name]
    assert container["command"] == ["serve", spec.name]
    assert container["environment"][f"PERDURE_{spec.name.upper()}_HOST"] == "0.0.0.0"  # noqa: S104 - in a container
    assert f"http://127.0.0.1:{spec.port}/ready" in container["healthcheck"]["test"]


@pytest.mark.parametrize("path", ["docker-compose.yml", "deploy/cluster/compose.yml"])
def test_compose_registers_every_service(path: str) -> None:
    register = composed(path)["register"]
    assert {each for each in register["command"] if each.startswith("--at=")} == ADDRESSES
    if path == "docker-compose.yml":
        assert {*register["depends_on"]} >= NAMES


@pytest.mark.parametrize("path", COMPOSE_FILES[1:])
def test_compose_overlays_cover_every_service(path: str) -> None:
    base, overlay = composed("docker-compose.yml"), composed(path)
    served = {name for name, each in base.items() if str(each.get("command", [""])[0]) == "serve"}
    assert served == NAMES <= overlay.keys()


def test_prometheus_scrapes_every_service() -> None:
    targets = scrape_jobs()["perdure"]["dns_sd_configs"]
    assert {(*each["names"], each["port"]) for each in targets} == {(spec.name, spec.port) for spec in SERVICES}


def test_missing_process_alert_covers_every_service() -> None:
    groups = yaml.safe_load((PROMETHEUS / "rules" / "perdure.yml").read_text())["groups"]
    (alert,) = [rule for group in groups for rule in group["rules"] if rule.get("alert") == "PerdureProcessMissing"]
    assert set(re.findall(r'absent\(up\{process="(\w+)"\}\)', alert["expr"])) == {ENGINE_JOB, *NAMES}


def test_rules_and_dashboards_use_scraped_jobs() -> None:
    files = [*(PROMETHEUS / "rules").glob("*.yml"), *(ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")]
    assert len(files) >= 5
    for file in files:
        text = file.read_text() if file.suffix == ".yml" else "\n".join(_expressions(json.loads(file.read_text())))
        assert set(re.findall(r'job="(\w+)"', text)) <= scrape_jobs().keys(), file
        assert set(re.findall(r'process="(\w+)"', text)) <= {ENGINE_JOB, *NAMES}, file


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


@each_service
def test_kubernetes_deploys_and_scales_service(spec: ServiceSpec) -> None:
    manifests, name = raw(), spec.name
    deployment = of(manifests, "RestateDeployment")[name]
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["args"] == ["serve", name]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables[spec.port_setting] == str(container["ports"][0]["containerPort"])
    assert deployment["spec"]["restate"]["register"] == {"cluster": "perdure-engine"}
    scaler = of(manifests, "HorizontalPodAutoscaler")[name]["spec"]["scaleTargetRef"]
    assert scaler == {"apiVersion": deployment["apiVersion"], "kind": deployment["kind"], "name": name}
    labels = template["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    assert of(manifests, "PodDisruptionBudget")[name]["spec"]["selector"]["matchLabels"].items() <= labels


def test_kubernetes_has_no_unregistered_service() -> None:
    manifests = raw()
    for kind in ("RestateDeployment", "HorizontalPodAutoscaler", "PodDisruptionBudget"):
        assert of(manifests, kind).keys() == NAMES, kind
    serving = {name for name, pod in pods(manifests).items() if pod["containers"][0]["args"][0] == "serve"}
    assert serving == NAMES
    assert ENGINE_PROXY in pods(manifests)
