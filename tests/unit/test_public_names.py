"""The exported names: complete, importable and documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest
from pydantic import BaseModel

import perdure
import perdure.security

MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(perdure.__path__, "perdure.")
    if not name.rpartition(".")[2].startswith("_")
)


REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "api"
EXPORTING = (
    *("perdure.callers", "perdure.engine", "perdure.errors", "perdure.schedules", "perdure.security"),
    *("perdure.serving", "perdure.sql", "perdure.testing"),
)

EXPORTS = """
    ApprovalTimeout Cancelled CompensationStrategy ConfigurationError Conflict ControlPlaneService
    DataPlaneContext DataPlaneService DeterministicHelpers FanOutResult Forbidden Hold IngressClient IngressError
    InvalidInput KeyedTarget MutableState NotFound ObjectClient ObservabilityHooks Orchestration PerdureError
    PromiseRaceResult RaceResult ReadOnlyState Refused RetryExhausted RetryPolicy RunConfig RunExhausted
    SafeStep Saga SagaConfig SecurityConfig SecurityMiddleware SecurityValidator ServiceClient State StatusData
    Step StepFailed StepTimeout Target TerminalError Time Unauthenticated WorkflowClient WorkflowConfig
    WorkflowLoop WorkflowStatus WorkflowTimer clear_all compensation error_code fan_out fan_out_fail for_each gather
    get_internal_signal guardrail handler map_concurrent process_batch race race_awakeable_with_timeout
    race_promise_with_timeout reject_external_signal resolve_external_signal run_async run_with_retry serve
    set_policy update_status wait_for_external_signal
"""

SEED = """
    RunConfig run_with_retry run_async DataPlaneService DeterministicHelpers Time ServiceClient ObjectClient
    WorkflowClient for_each fan_out fan_out_fail map_concurrent process_batch gather race FanOutResult RaceResult
    race_awakeable_with_timeout race_promise_with_timeout PromiseRaceResult State clear_all
    MutableState ReadOnlyState wait_for_external_signal resolve_external_signal reject_external_signal
    get_internal_signal ControlPlaneService Saga SafeStep CompensationStrategy SagaConfig update_status StatusData
    ObservabilityHooks WorkflowStatus set_policy guardrail IngressClient WorkflowTimer WorkflowLoop WorkflowConfig
    SecurityConfig SecurityValidator SecurityMiddleware
"""


def test_exports_match_list():
    assert sorted(perdure.__all__) == EXPORTS.split()


@pytest.mark.parametrize("package", [perdure, perdure.security])
def test_lazy_names_match_imports(package):
    blocks = [node for node in ast.parse(inspect.getsource(package)).body if isinstance(node, ast.If)]
    typed = {
        node.module: " ".join(alias.name for alias in node.names)
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert typed == package._MODULES
    assert sorted(name for names in typed.values() for name in names.split()) == sorted(package.__all__)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018 - the access is the test
    namespace: dict[str, object] = {}
    exec(f"from {package.__name__} import *", namespace)  # noqa: S102 - the purpose of __all__
    assert set(package.__all__) <= set(namespace)


def test_export_seed_names():
    assert set(SEED.split()) <= set(perdure.__all__)


def documented(function: object) -> bool:
    return bool(inspect.getdoc(function))


@pytest.mark.parametrize("name", perdure.__all__)
def test_exports_and_methods_are_documented(name):
    value = getattr(perdure, name)
    assert documented(value), f"{name} has no docstring"
    if not inspect.isclass(value):
        return
    for member, function in vars(value).items():
        if member.startswith("_") or not (inspect.isfunction(function) or isinstance(function, property)):
            continue
        assert documented(function), f"{name}.{member} has no docstring"


def parameters_of(function: object) -> list[str]:
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()  # type: ignore[arg-type] # any callable
        if parameter.name not in ("self", "cls")
    ]


def undocumented_arguments(value: object) -> list[str]:
    text = inspect.getdoc(value) or ""
    is_model = inspect.isclass(value) and issubclass(value, BaseModel)
    names = list(value.model_fields) if is_model else parameters_of(value)  # type: ignore[attr-defined] # a model
    return [argument for argument in names if f"{argument}:" not in text]


@pytest.mark.parametrize("name", perdure.__all__)
def test_arguments_of_exports_are_documented(name):
    value = getattr(perdure, name)
    is_named = inspect.isclass(value) and issubclass(value, Enum | BaseException)
    missing = {} if is_named else {name: undocumented_arguments(value)}
    if inspect.isclass(value):
        functions = {member: getattr(function, "__func__", function) for member, function in vars(value).items()}
        missing |= {
            member: undocumented_arguments(function)
            for member, function in functions.items()
            if not member.startswith("_") and inspect.isfunction(function)
        }
    assert not any(missing.values()), missing


def test_reference_describes_every_export():
    pages = "".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    described = set(re.findall(r"^## `(\w+)`", pages, flags=re.MULTILINE))
    exported = {
        name
        for package in (perdure, *map(importlib.import_module, EXPORTING))
        for name in package.__all__
        if inspect.isclass(value := getattr(package, name)) or inspect.isfunction(value)
    }
    assert exported <= described, exported - described


@pytest.mark.parametrize("module", MODULES)
def test_import_and_document_every_module(module):
    assert importlib.import_module(module).__doc__


def test_package_is_typed():
    assert (Path(perdure.__file__).parent / "py.typed").exists()


def test_testing_names_its_missing_extra():
    hidden = "import sys; sys.modules['pytest'] = None; import perdure.testing; import perdure.testing.plugin"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    error = "pytest is not installed, which perdure.testing.plugin needs; pip install 'perdure[testing]'"
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {error}"
