"""Names and reasons reject invisible characters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from perdure.approvals import messages as approvals
from perdure.approvals import request
from perdure.saga import messages as sagas
from perdure.schedules import messages as schedules
from perdure.security import credentials, links, signed_actions

FIELDS = ("actor", "groups", "person", "requester", "to")
HOSTILE = ("ada\x1b[2J", "ada\u202e", "ada\u200b", "ada\nok", "ada\x9b", "ada\u2028", "ada\r", "ada\u2066")


def inputs() -> Iterator[Any]:
    for module in (approvals, request, sagas, schedules, signed_actions, credentials, links):
        for name, model in vars(module).items():
            if isinstance(model, type) and issubclass(model, BaseModel) and model.__module__ == module.__name__:
                if model.model_config.get("extra") != "forbid":
                    continue
                for field, info in model.model_fields.items():
                    if field in FIELDS or (field == "reason" and model is not sagas.ExternalRollbackRequest):
                        yield pytest.param(field, info, id=f"{name}.{field}")


def checked(field: str, info: FieldInfo, text: str) -> object:
    kind = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    if field != "groups":
        return adapter.validate_python(text)
    try:
        return adapter.validate_python([text])
    except ValidationError as error:
        if error.errors()[0]["type"] != "dict_type":
            raise
        return adapter.validate_python({text: ["ada"]})


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(("field", "info"), list(inputs()))
def test_inputs_reject_invisible_characters(field: str, info: FieldInfo, text: str):
    assert checked(field, info, "ada")
    with pytest.raises(ValidationError, match=r"invisible character U\+"):
        checked(field, info, text)


def test_find_all_inputs():
    assert len(list(inputs())) >= 25
