"""Values are read back as written, or refused with their place and field."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from pydantic import (
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    JsonValue,
    PrivateAttr,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    computed_field,
    create_model,
    field_serializer,
    field_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.errors import PydanticUserError
from typing_extensions import TypedDict

from perdure._runtime.serdes import TypedSerde, serde_for, type_of
from perdure.errors import PerdureTerminalError

T = TypeVar("T")
PLACE = "state 'entry'"
NAIVE = datetime.fromisoformat("2026-01-01T00:00:00")


class Text(str):
    """A text with a class of its own."""


class Word(StrEnum):
    YES = "yes"
    NO = "no"


class Number(IntEnum):
    ONE = 1
    TWO = 2


class Flags(IntFlag):
    A = 1
    B = 2


class Pair(Enum):
    LEFT = (1, 2)
    RIGHT = (2, 1)


class Mixed(Enum):
    PLAIN = "plain"
    AGAIN = "plain"  # noqa: PIE796 - an alias
    NUMBER = 1
    DAY = date(2026, 1, 1)
    BYTES = b"x"


class Base(BaseModel):
    a: int = 0


class Derived(Base):
    b: str = ""


class Same(BaseModel):
    a: int = 0


class Private(BaseModel):
    a: int = 0
    _seen: int = PrivateAttr(default=0)


class Bounded(BaseModel):
    a: int = Field(default=0, ge=0, le=10)


class Appended(BaseModel):
    a: str

    @field_validator("a")
    @classmethod
    def _append(cls, value: str) -> str:
        return f"{value}!"


class Shouted(BaseModel):
    a: str

    @field_serializer("a")
    def _shout(self, value: str) -> str:
        return value.upper()


class Total(BaseModel):
    model_config = ConfigDict(extra="forbid")

    a: int

    @computed_field
    def twice(self) -> int:
        return 2 * self.a


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    a: int = 0


class Wrapper(RootModel[list[int]]):
    pass


class Box(BaseModel, Generic[T]):
    content: T


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: float = 9.0


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str = ""


class Tree(BaseModel):
    label: str = ""
    branches: list[Tree] = []


class Movement(TypedDict):
    by: timedelta


class Place(NamedTuple):
    row: int
    seat: str = "A"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0
    tags: list[str] = dataclasses.field(default_factory=list)
    norm: float = dataclasses.field(default=1.0, init=False)


TEXTS = st.text(max_size=5) | st.sampled_from(["1", "true", "null", "2026-01-01", "NaN", str(UUID(int=1)), "\ud800"])
FLOATS = st.floats() | st.just(-0.0)
TIMEZONES = st.none() | st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), timezone(timedelta(seconds=30))])
DATETIMES = st.datetimes(timezones=TIMEZONES) | st.just(datetime(1890, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")))
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXTS,
    int: st.integers() | st.just(10**4299),
    float: FLOATS,
    bool: st.booleans(),
    type(None): st.none(),
    bytes: st.binary(max_size=5),
    Decimal: st.decimals() | st.sampled_from([Decimal("1.00"), Decimal("1E+5000"), Decimal("sNaN")]),
    date: st.dates(),
    datetime: DATETIMES,
    time: st.times(timezones=st.none() | st.just(UTC)),
    timedelta: st.timedeltas(),
    UUID: st.uuids(),
    Word: st.sampled_from(Word),
    Number: st.sampled_from(Number),
    Flags: st.sampled_from([Flags.A, Flags.A | Flags.B, Flags(8)]),
    Pair: st.sampled_from(Pair),
    Mixed: st.sampled_from(Mixed),
    Literal[1, True, "1", None]: st.sampled_from([1, True, "1", None]),
    SecretStr: TEXTS.map(SecretStr),
    SecretBytes: st.binary(max_size=5).map(SecretBytes),
    Secret[int]: st.integers().map(Secret[int]),
}
MODELS: dict[Any, st.SearchStrategy[Any]] = {
    Base: st.builds(Base, a=st.integers()) | st.builds(Derived, a=st.integers(), b=TEXTS),
    Private: st.integers(0, 1).map(lambda seen: _with_private(Private(), seen)),
    Bounded: st.integers(-5, 15).map(lambda number: Bounded.model_construct(a=number)) | st.just(Bounded()),
    Appended: TEXTS.map(lambda text: Appended.model_construct(a=text)),
    Shouted: st.sampled_from([Shouted(a="A"), Shouted(a="a")]),
    Total: st.builds(Total, a=st.integers()),
    Open: st.dictionaries(st.sampled_from(["b", "c"]), st.integers() | st.dates()).map(lambda more: Open(**more)),
    Wrapper: st.lists(st.integers(), max_size=3).map(Wrapper),
    Box[int]: st.builds(Box[int], content=st.integers()),
    Box: st.builds(Box, content=st.integers() | st.tuples(st.integers())),
    Tree: st.just(Tree(branches=[Tree(label="a"), Tree(branches=[Tree()])])),
    Point: st.builds(Point, x=st.integers(), y=FLOATS | st.integers()) | st.builds(Point, x=TEXTS),
    Movement: st.fixed_dictionaries({"by": st.timedeltas()}, optional={"more": st.integers()}),
    Place: st.builds(Place, row=st.integers(), seat=TEXTS),
    Annotated[Cat | Dog, Field(discriminator="kind")]: st.builds(Cat, lives=FLOATS) | st.builds(Dog, name=TEXTS),
    Base | Same: st.builds(Base, a=st.integers()) | st.builds(Same, a=st.integers()),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
ODD_VALUES = [
    Text("a"),
    Word.YES,
    Number.ONE,
    True,
    1,
    1.5,
    "1",
    (1,),
    {1},
    {1: 2},
    [1],
    b"\xff",
    None,
    object(),
    print,
]
ODD_VALUES += [Base(a=1), Derived(a=1), date(2026, 1, 1), NAIVE, Decimal(1), UUID(int=1), SecretStr("x"), math.nan]
ODD = st.sampled_from(ODD_VALUES)
LEAVES = {
    **SCALARS,
    **MODELS,
    Any: JSON | ODD,
    JsonValue: JSON,
    dict: st.just({1: 2}) | st.just({}),
    list: st.just([()]),
}

Typed = tuple[Any, st.SearchStrategy[Any]]


def _with_private(value: Private, seen: int) -> Private:
    value._seen = seen
    return value


@st.composite
def models(draw: st.DrawFn, inner: st.SearchStrategy[Typed]) -> Typed:
    """Draw a new model with fields of the inner types, and its values."""
    fields: dict[str, Any] = {}
    values: dict[str, st.SearchStrategy[Any]] = {}
    for name in draw(st.lists(st.sampled_from(["one_a", "two_b", "three_c"]), unique=True, min_size=1)):
        type_, found = draw(inner)
        values[name] = found | ODD if draw(st.integers(0, 9)) == 0 else found
        options = draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "exclude": st.just(True),
                    "validation_alias": st.sampled_from(["one_a", "x", "y"]),
                    "serialization_alias": st.sampled_from(["one_a", "x", "z"]),
                },
            )
            if draw(st.integers(0, 4)) == 0
            else st.just({})
        )
        if draw(st.booleans()):
            options["default"] = None
        fields[name] = (type_, Field(**options))
    config = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "alias_generator": st.just(to_camel),
                "extra": st.sampled_from(["forbid", "allow", "ignore"]),
                "populate_by_name": st.just(True),
                "ser_json_inf_nan": st.sampled_from(["null", "strings", "constants"]),
                "ser_json_bytes": st.sampled_from(["utf8", "base64", "hex"]),
                "val_json_bytes": st.sampled_from(["utf8", "base64", "hex"]),
                "ser_json_timedelta": st.sampled_from(["iso8601", "float"]),
                "ser_json_temporal": st.sampled_from(["iso8601", "seconds", "milliseconds"]),
                "strict": st.just(True),
            },
        )
        if draw(st.booleans())
        else st.just({})
    )
    try:
        model = create_model("Made", __config__=ConfigDict(**config), **fields)
    except PydanticUserError:  # the settings contradict each other
        reject()
    return model, st.fixed_dictionaries(values).map(lambda content: model.model_construct(**_by_alias(model, content)))


def _by_alias(model: type[BaseModel], content: dict[str, Any]) -> dict[str, Any]:
    aliases = {name: field.validation_alias for name, field in model.model_fields.items()}
    return {str(aliases[name] or name): value for name, value in content.items()}


def containers(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    """Return containers, unions and models of the inner types."""
    keys = st.sampled_from([key for key in SCALARS if key not in (SecretStr, SecretBytes)]) | st.just(tuple[int, str])
    return st.one_of(
        inner.map(lambda item: (list[item[0]], st.lists(item[1], max_size=3))),  # type: ignore[name-defined]
        inner.map(lambda item: (tuple[item[0], ...], st.lists(item[1], max_size=3).map(tuple))),  # type: ignore[name-defined]
        inner.map(lambda item: (item[0] | None if _is_class(item[0]) else item[0], item[1])),
        st.tuples(inner, inner).map(lambda two: (_union(two[0][0], two[1][0]), two[0][1] | two[1][1])),
        st.tuples(keys, inner).map(
            lambda two: (dict[two[0], two[1][0]], st.dictionaries(_keys(two[0]), two[1][1], max_size=2))  # type: ignore[name-defined]
        ),
        keys.map(lambda key: (set[key], st.sets(_keys(key), max_size=3))),  # type: ignore[valid-type]
        models(inner),
    )


def _is_class(type_: Any) -> bool:
    return isinstance(type_, type)


def _union(one: Any, other: Any) -> Any:
    return one | other if _is_class(one) and _is_class(other) else one


def _keys(type_: Any) -> st.SearchStrategy[Any]:
    if type_ == tuple[int, str]:
        return st.tuples(st.integers(), st.text(max_size=2))
    return SCALARS[type_].filter(lambda key: not (isinstance(key, Decimal) and key.is_snan()))


TYPED = st.recursive(st.sampled_from(list(LEAVES.items())), containers, max_leaves=4)


def is_same(read: Any, written: Any) -> bool:  # noqa: PLR0911 - one per kind of value
    """Return whether two values are equal and of one class, in all parts. Written apart from the code under test."""
    if type(read) is float and type(written) is int:
        return bool(read == written)
    if type(read) is not type(written):
        return False
    if isinstance(written, BaseModel):
        return (
            all(is_same(getattr(read, name), getattr(written, name)) for name in type(written).model_fields)
            and is_same(read.model_extra, written.model_extra)
            and is_same(read.__pydantic_private__, written.__pydantic_private__)
        )
    if dataclasses.is_dataclass(written):
        names = [field.name for field in dataclasses.fields(written)]
        return all(is_same(getattr(read, name), getattr(written, name)) for name in names)
    if isinstance(written, dict):
        return is_same([*read, *read.values()], [*written, *written.values()])
    if isinstance(written, list | tuple):
        return len(read) == len(written) and all(map(is_same, read, written))
    if isinstance(written, datetime | time):  # `==` is False in the hour that a change of the clocks repeats
        return bool(read.isoformat() == written.isoformat())
    return repr(read) == repr(written) if isinstance(written, float | Decimal) else bool(read == written)


def write_or_refuse(serde: TypedSerde[Any], value: Any) -> bytes | PerdureTerminalError:
    try:
        return serde.write(value, PLACE)
    except PerdureTerminalError as error:
        return error


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_values_return_unchanged_or_are_refused(data):
    type_, values = data.draw(TYPED)
    value = data.draw(values)
    serde = serde_for(type_)
    written = write_or_refuse(serde, value)
    if isinstance(written, bytes):
        read = serde.deserialize(written)
        assert is_same(read, value) or is_same(read, converted(type_, value))
    else:
        assert written.message.startswith(f"{PLACE}: cannot write a value ")
        assert written.metadata["code"] == "unwritable"


def converted(type_: Any, value: Any) -> Any:
    """Return a value of an unrelated class as pydantic converts it, such as a list for a tuple."""
    return TypeAdapter(type_).validate_python(value)


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")

    order_id: str


class TwoAliases(BaseModel):
    a: str = Field(validation_alias="x", serialization_alias="y")


class DeepAlias(BaseModel):
    a: str = Field(validation_alias=AliasPath("x", 0))


class Swapped(BaseModel):
    a: str = Field(alias="b")
    b: str = Field(alias="a")


class Measured(BaseModel):
    value: float
    limit: float | None = None


class Excluded(BaseModel):
    a: int = 0
    hint: str = Field(default="", exclude=True)


class JsonText(BaseModel):
    numbers: Json[list[int]]


@pytest.mark.parametrize(
    ("type_", "value", "written"),
    [
        (Camel, Camel(orderId="a"), b'{"orderId":"a"}'),
        (TwoAliases, TwoAliases(x="1"), b'{"a":"1"}'),
        (DeepAlias, DeepAlias(x=["1"]), b'{"a":"1"}'),
        (Swapped, Swapped(a="2", b="1"), b'{"b":"1","a":"2"}'),
        (Measured, Measured(value=math.inf, limit=math.nan), b'{"value":"Infinity","limit":"NaN"}'),
        (Excluded, Excluded(a=1), b'{"a":1}'),
        (Total, Total(a=1), b'{"a":1}'),
        (JsonText, JsonText(numbers="[1]"), b'{"numbers":"[1]"}'),
        (dict[int, int], {1: 2}, b'{"1":2}'),
        (dict[date, int], {date(2026, 1, 1): 2}, b'{"2026-01-01":2}'),
        (Decimal, Decimal("1.00"), b'"1.00"'),
        (float, -0.0, b"-0.0"),
        (int | str, "5", b'"5"'),
        (Mixed, Mixed.AGAIN, b'"plain"'),
        (Point, Point(1, 2), b'{"x":1,"y":2.0,"tags":[],"norm":1.0}'),
    ],
)
def test_write_form_that_type_can_read(type_: Any, value: Any, written: bytes):
    serde = serde_for(type_)
    assert serde.write(value) == written
    assert is_same(serde.deserialize(written), value)


class Seats(BaseModel):
    taken: frozenset[str] = frozenset()
    rows: list[dict[str, set[Word | int]]] = []


def test_write_sets_in_fixed_order():
    seats = Seats(taken=frozenset("fcabde"), rows=[{"x": {Word.YES, Word.NO, 10, 2}}])
    serde = serde_for(Seats)
    written = serde.write(seats)
    assert written == b'{"taken":["a","b","c","d","e","f"],"rows":[{"x":[10,2,"no","yes"]}]}'
    assert is_same(serde.deserialize(written), seats)
    assert type(seats.taken) is frozenset  # the value itself is unchanged
    assert serde_for(set[str]).write(set("cab")) == b'["a","b","c"]'


class Login(BaseModel):
    user: str = "ada"
    password: SecretStr | None = None


@pytest.mark.parametrize(
    ("type_", "value", "field", "reason"),
    [
        (
            Login,
            Login(password=SecretStr("open sesame")),
            "password",
            "written as asterisks; pass a reference to it instead",
        ),
        (list[SecretBytes], [SecretBytes(b"open sesame")], "0", "cannot be read back"),
        (Base, Derived(a=1, b="lost"), "", "a value of class Derived would be read back as Base"),
        (dict[str, Base], {"x": Derived()}, "x", "a value of class Derived would be read back as Base"),
        (Private, _with_private(Private(), 5), "_seen", "another value of class int would be read back"),
        (Excluded, Excluded(hint="x"), "hint", "another value of class str would be read back"),
        (Bounded, Bounded.model_construct(a=-1), "a", "greater than or equal to 0"),
        (Total, Total.model_construct(), "a", "Field required"),
        (Appended, Appended(a="x"), "a", "another value of class str would be read back"),
        (UUID | str, str(UUID(int=1)), "", "a value of class str would be read back as UUID"),
        (list[int] | set[int], {1}, "", "a value of class set would be read back as list"),
        (datetime | date | str, "2026-01-01", "", "a value of class str would be read back as date"),
        (Base | Same, Same(a=1), "", "a value of class Same would be read back as Base"),
        (Any, {"pair": (1, 2)}, "pair", "a value of class tuple would be read back as list"),
        (Any, Base(), "", "a value of class Base would be read back as dict"),
        (dict, {1: 2}, "[key]", "a value of class int would be read back as str"),
        (dict[tuple[int, int], str], {(1, 2): "x"}, "1,2.[key]", "cannot be read back"),
        (str, Word.YES, "", "a value of class Word would be read back as str"),
        (list[str], [Text("a")], "0", "a value of class Text would be read back as str"),
        (int, True, "", "a value of class bool would be read back as int"),
        (date, NAIVE, "", "a value of class datetime would be read back as date"),
        (datetime, datetime(1890, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")), "", "another value of class datetime"),
        (Mixed, Mixed.DAY, "", "cannot be read back"),
        (Decimal, Decimal("NaN"), "", "cannot be read back"),
        (dict[str, int], {"x": 10**5000}, "x", "number out of range"),
        (dict[str, list[str]], {"x": ["\ud800"]}, "x.0", "surrogates not allowed"),
        (Movement, {"by": timedelta(1), "more": 1}, "more", "is not written"),
    ],
)
def test_refusal_names_field_and_reason(type_: Any, value: Any, field: str, reason: str):
    error = write_or_refuse(serde_for(type_), value)
    assert isinstance(error, PerdureTerminalError)
    assert error.message.startswith(f"{PLACE}: cannot write a value of class {type(value).__qualname__} as ")
    assert reason in error.message
    assert error.metadata.get("field", "") == field
    assert "sesame" not in error.message


class RequiredSecret(BaseModel):
    login: tuple[str, SecretStr]


class RequiredExcluded(BaseModel):
    a: int = Field(exclude=True)


@dataclasses.dataclass
class WithInitVar:
    a: dataclasses.InitVar[int]


@pytest.mark.parametrize(
    ("type_", "reason"),
    [
        (RequiredSecret, "login.1: a secret would be written as asterisks"),
        (RequiredExcluded, "a: it is required, but excluded from serialisation"),
        (WithInitVar, "a: it is an InitVar, which is not written"),
        (Pair, "no member of Pair can be read from its JSON"),
        (Callable, "its type cannot be read from JSON"),
    ],
)
def test_find_types_without_readable_values(type_: Any, reason: str):
    serde = serde_for(type_)
    assert reason in str(serde.unwritable)
    with pytest.raises(PerdureTerminalError, match=r"^the result of run 'x': cannot write a value as "):
        serde.require_writable("the result of run 'x'")


@pytest.mark.parametrize("type_", [list[SecretStr], SecretStr | None, Login, Excluded, Mixed, Base, Tree, Any, Point])
def test_types_with_readable_values_are_writable(type_: Any):
    assert serde_for(type_).unwritable is None


def test_write_undeclared_type_with_types_of_items():
    values = [[Base(a=1), None], {"a": (1, NAIVE)}, {1, 2}, (), frozenset({"a"})]
    for value in values:
        serde = serde_for(type_of(value))
        assert is_same(serde.deserialize(serde.write(value)), value)
