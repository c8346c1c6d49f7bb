"""The public names: sorted, there, documented, and none forgotten."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
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


def test_the_list_is_sorted_and_has_no_name_twice():
    assert perdure.__all__ == sorted(set(perdure.__all__))


@pytest.mark.parametrize("package", [perdure, perdure.security])
def test_lazy_names_are_those_of_the_list(package):
    blocks = [node for node in ast.parse(inspect.getsource(package)).body if isinstance(node, ast.If)]
    typed = {
        node.module: tuple(alias.name for alias in node.names)
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert typed == package._MODULES
    assert sorted(name for names in typed.values() for name in names) == sorted(package.__all__)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018 - the access is the test


def test_every_name_on_the_list_is_there():
    namespace: dict[str, object] = {}
    exec("from perdure import *", namespace)  # noqa: S102 - that's what the list is for
    assert set(perdure.__all__) <= set(namespace)


def test_the_names_of_the_seed_are_there():
    seed = """
        RunConfig run_with_retry run_async DataPlaneService DeterministicHelpers Time ServiceClient ObjectClient
        WorkflowClient for_each fan_out fan_out_fail map_concurrent process_batch gather race FanOutResult RaceResult
        race_awakeable_with_timeout race_promise_with_timeout PromiseRaceResult State clear_all
        MutableState ReadOnlyState wait_for_external_signal resolve_external_signal reject_external_signal
        get_internal_signal ControlPlaneService Saga SafeStep CompensationStrategy SagaConfig update_status StatusData
        ObservabilityHooks WorkflowStatus set_policy guardrail IngressClient WorkflowTimer WorkflowLoop WorkflowConfig
        SecurityConfig SecurityValidator SecurityMiddleware
    """
    assert set(seed.split()) <= set(perdure.__all__)


def documented(function: object) -> bool:
    return bool(inspect.getdoc(function))


@pytest.mark.parametrize("name", perdure.__all__)
def test_every_public_name_and_its_methods_are_documented(name):
    value = getattr(perdure, name)
    assert documented(value), f"{name} has no docstring"
    if not inspect.isclass(value):
        return
    for member, function in vars(value).items():
        if member.startswith("_") or not (inspect.isfunction(function) or isinstance(function, property)):
            continue
        assert documented(function), f"{name}.{member} has no docstring"


def takes(function: object) -> list[str]:
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()  # type: ignore[arg-type] # any callable
        if parameter.name not in ("self", "cls")
    ]


@pytest.mark.parametrize("name", perdure.__all__)
def test_every_argument_of_a_public_name_is_described(name):
    value = getattr(perdure, name)
    if inspect.isclass(value) and issubclass(value, Enum | BaseException):
        return
    text = inspect.getdoc(value) or ""
    names = list(value.model_fields) if inspect.isclass(value) and issubclass(value, BaseModel) else takes(value)
    described = [argument for argument in names if f"{argument}:" not in text]
    assert described == [], f"{name} does not describe {described}"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_importable_and_says_what_it_is(module):
    assert importlib.import_module(module).__doc__


def test_the_package_is_typed():
    assert (Path(perdure.__file__).parent / "py.typed").exists()
