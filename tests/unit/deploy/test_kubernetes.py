"""The manifests of deploy/kubernetes: rendering, schemas and consistency, without a cluster."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from perdure.serving.watchdog import DEFAULT_HANG_LIMIT
from services.runtime.settings import DATABASE_OWNERS

ROOT = Path(__file__).parents[3] / "deploy" / "kubernetes"
FOLDERS = ("base", "overlays/development", "overlays/production")
KUBERNETES = "1.36"

Manifest = dict[str, Any]


def raw() -> list[Manifest]:
    """Return the manifests of the base, with lists flattened."""
    names = yaml.safe_load((ROOT / "base" / "kustomization.yaml").read_text())["resources"]
    documents = [each for name in names for each in yaml.safe_load_all((ROOT / "base" / name).read_text())]
    return [item for each in documents for item in (each["items"] if each["kind"] == "List" else [each])]


def rendered(folder: str) -> list[Manifest]:
    """Return the manifests that kustomize renders from a folder."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl to render the overlays; another test checks the base")
    done = subprocess.run([kubectl, "kustomize", ROOT / folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the pod specifications by the name of their owner."""
    kinds = ("RestateDeployment", "Deployment", "Job")
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in manifests if each["kind"] in kinds}


def as_deployment(manifest: Manifest) -> Manifest:
    """Return the operator's Deployment for a RestateDeployment, since only Deployments have a schema."""
    spec = {name: manifest["spec"][name] for name in ("replicas", "selector", "template")}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": manifest["metadata"], "spec": spec}


def validate(manifests: list[Manifest]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="the package kubernetes-validate has the schemas")
    for each in manifests:
        if each["apiVersion"].partition("/")[0] in ("restate.dev", "monitoring.coreos.com"):
            if each["kind"] == "RestateDeployment":
                validator.validate(as_deployment(each), KUBERNETES, strict=True)
            continue
        validator.validate(each, KUBERNETES, strict=True)


def test_base_conforms_to_schemas() -> None:
    validate(raw())


@pytest.mark.parametrize("folder", FOLDERS)
def test_overlays_render_and_conform_to_schemas(folder: str) -> None:
    manifests = rendered(folder)
    assert {each["metadata"]["name"] for each in manifests} == {each["metadata"]["name"] for each in raw()}
    validate(manifests)


def test_pods_are_restricted_and_probed() -> None:
    for name, pod in pods(raw()).items():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["limits"]["memory"], name
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, name  # noqa: S108 - a mount
            if name != "migrate":
                assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container), name


def test_liveness_probe_comes_after_watchdog() -> None:
    limit = DEFAULT_HANG_LIMIT.total_seconds()
    for name, pod in pods(raw()).items():
        for container in pod["containers"]:
            probe = container.get("livenessProbe", {})
            if "httpGet" in probe:
                earliest = probe["periodSeconds"] * (probe["failureThreshold"] - 1) + probe["timeoutSeconds"]
                latest = earliest + probe["periodSeconds"]
                assert limit * 1.1 <= earliest, name
                assert latest <= 45, name


def test_only_database_users_reach_database() -> None:
    manifests = raw()
    for each in manifests:
        if each["kind"] not in ("RestateDeployment", "Deployment", "Job"):
            continue
        template = each["spec"]["template"]
        variables = {variable["name"] for variable in template["spec"]["containers"][0]["env"]}
        labelled = template["metadata"]["labels"].get("perdure.dev/uses-database") == "true"
        name = each["metadata"]["name"]
        databases = {variable for variable in variables if variable.endswith("_DATABASE_URL")}
        owned = DATABASE_OWNERS if name == "migrate" else {name} & {*DATABASE_OWNERS}
        assert databases == {f"PERDURE_{owner.upper()}_DATABASE_URL" for owner in owned}, name
        assert labelled == bool(databases), name
    assert of(manifests, "NetworkPolicy")["default-deny"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }


def test_admin_api_is_reached_by_labelled_pods() -> None:
    manifests = raw()
    templates = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in manifests
        if each["kind"] in ("RestateDeployment", "Deployment", "Job")
    }
    callers = {name for name, labels in templates.items() if labels.get("perdure.dev/calls-admin") == "true"}
    assert callers == {"approvals", "saga", "console", "engine-proxy"}
    (rule,) = of(manifests, "NetworkPolicy")["engine-proxy"]["spec"]["ingress"]
    assert [each["port"] for each in rule["ports"]] == [8080]
    peers = of(manifests, "RestateCluster")["perdure-engine"]["spec"]["security"]["networkPeers"]
    assert [each["podSelector"]["matchLabels"] for each in peers["admin"]] == [{"perdure.dev/calls-admin": "true"}]


def test_proxy_probes_name_served_host() -> None:
    (container,) = pods(raw())["engine-proxy"]["containers"]
    assert container["args"] == ["engine-proxy"]
    assert container["readinessProbe"]["httpGet"]["httpHeaders"] == [{"name": "Host", "value": "localhost"}]
    values = {each["name"]: each["value"] for each in container["env"]}
    assert "engine-proxy.perdure.svc" in values["PERDURE_PROXY_ALLOWED_HOSTS"].split(",")


def test_manifests_contain_no_secret() -> None:
    assert of(raw(), "Secret") == {}
    for pod in pods(raw()).values():
        for variable in pod["containers"][0]["env"]:
            if any(word in variable["name"] for word in ("URL", "TOKEN", "KEYS")):
                assert "secretKeyRef" in variable["valueFrom"], variable["name"]


def test_alert_expressions_parse() -> None:
    (rules,) = of(raw(), "PrometheusRule").values()
    expressions = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert expressions
    for expression in expressions:
        promql_parser.parse(expression)
