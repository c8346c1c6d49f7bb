"""Handler definition: types from signatures, validated declarations."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import pytest
import restate
from pydantic import BaseModel, Field

from perdure import ControlPlaneService, DataPlaneContext, DataPlaneService, Orchestration, schedules
from perdure._runtime.serdes import InputSerde, Unreadable, serde_for
from perdure.alerts.service import Alerts
from perdure.approvals import service as approvals
from perdure.errors import ConfigurationError, InvalidInput
from perdure.handlers import handler, read_signature
from perdure.saga import hosting
from perdure.saga.rollback import Rollbacks

if TYPE_CHECKING:
    from somewhere import Elsewhere


class Order(BaseModel):
    id: str


async def full(ctx: DataPlaneContext, order: Order) -> list[Order]:
    return [order]


async def no_input(ctx: DataPlaneContext) -> str:
    return "pong"


async def constrained(ctx: DataPlaneContext, seats: Annotated[int, Field(ge=1)]) -> None: ...


def test_read_types_from_signature():
    signature = read_signature(full)
    assert (signature.input, signature.output, signature.takes_input) == (Order, list[Order], True)
    signature = read_signature(no_input)
    assert (signature.input, signature.output, signature.takes_input) == (type(None), str, False)


def test_keep_constraints_of_annotation():
    error = InputSerde(serde_for(read_signature(constrained).input)).deserialize(b"0").error
    assert "greater than or equal to 1" in error.message


async def test_pass_request_only_if_declared():
    assert await read_signature(full).invoke(None, Order(id="1")) == [Order(id="1")]
    assert await read_signature(no_input).invoke(None, None) == "pong"


async def test_reject_unreadable_request_before_function_runs():
    error = InvalidInput("seats: too many")
    with pytest.raises(InvalidInput) as refused:
        await read_signature(full).invoke(None, Unreadable(error))
    assert refused.value is error


def not_async(ctx: DataPlaneContext) -> None: ...


async def no_parameter() -> None: ...


async def three(ctx: DataPlaneContext, one: int, two: int) -> None: ...


async def untyped_request(ctx: DataPlaneContext, request) -> None: ...


async def untyped_result(ctx: DataPlaneContext, request: int): ...


async def checker_only(ctx: DataPlaneContext, request: Elsewhere) -> None: ...


async def keyword_only(ctx: DataPlaneContext, *, request: int) -> None: ...


async def variadic(ctx: DataPlaneContext, *requests: int) -> None: ...


async def keywords(ctx: DataPlaneContext, **request: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (not_async, "not_async: a handler must be a coroutine function"),
        (no_parameter, "no_parameter: a handler takes a context and at most one request, not 0 parameters"),
        (three, "three: a handler takes a context and at most one request, not 3 parameters"),
        (untyped_request, "untyped_request: annotate the parameter 'request'"),
        (untyped_result, "untyped_result: annotate the type of the response"),
        (checker_only, "checker_only: the type 'Elsewhere' cannot be resolved at run time"),
        (keyword_only, "keyword_only: .*'request' must accept that"),
        (variadic, "variadic: .*'requests' must accept that"),
        (keywords, "keywords: .*'request' must accept that"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_reject_invalid_handler_signature(function, text):
    with pytest.raises(ConfigurationError, match=text):
        read_signature(function)


def test_reject_duplicate_handler_name():
    # The SDK would silently use the second one.
    service = DataPlaneService("Flights")

    @service.handler("reserve")
    async def first(ctx: DataPlaneContext) -> None: ...

    with pytest.raises(ConfigurationError, match="Flights already has a handler 'reserve'"):

        @service.handler("reserve")
        async def second(ctx: DataPlaneContext) -> None: ...


def test_reject_second_main_handler():
    trips = ControlPlaneService("Trips")

    @trips.main()
    async def book(cp: Orchestration) -> None: ...

    with pytest.raises(ConfigurationError):

        @trips.main()
        async def book_again(cp: Orchestration) -> None: ...


def test_reject_name_invalid_in_restate():
    with pytest.raises(ConfigurationError, match="handler name 'cancel-flight'"):
        handler(restate.Service("Flights"), name="cancel-flight")(no_input)


def test_decorated_function_stays_callable():
    service = DataPlaneService("Flights")
    assert service.handler()(no_input) is no_input


def test_keep_docstring_of_handler():
    service = restate.Service("Flights")

    @handler(service)
    async def reserve(ctx: restate.Context, order: Order) -> None:
        """Reserve seats."""

    assert service.handlers["reserve"].fn.__doc__ == "Reserve seats."


READS = {"perdure.read_only": "true"}


def test_publish_read_only_handlers_in_metadata():
    objects, plane, trips = restate.VirtualObject("Carts"), DataPlaneService("Stock"), ControlPlaneService("Trips")
    handler(objects, "shared", name="show", read_only=True)(no_input)
    handler(objects, "shared", name="order", metadata={"team": "shop"})(no_input)
    handler(objects, "shared", name="sum", read_only=True, metadata={"team": "shop"})(no_input)
    plane.handler("count", read_only=True)(no_input)
    plane.handler("take")(no_input)
    trips.main()(book)
    trips.handler("seats", read_only=True)(shared)
    trips.handler("review")(shared)
    assert {name: each.metadata for name, each in objects.handlers.items()} == {
        "show": READS,
        "order": {"team": "shop"},
        "sum": {**READS, "team": "shop"},
    }
    (stock,) = plane.definitions()
    assert {name: each.metadata for name, each in stock.handlers.items()} == {"count": READS, "take": None}
    assert {name: each.metadata for name, each in trips.definitions()[0].handlers.items()} == {
        "run": None,
        "status": READS,  # of the library's own
        "roll_back": None,
        "seats": READS,
        "review": None,
    }


def test_handlers_are_retried_at_short_intervals():
    own = restate.InvocationRetryPolicy(max_attempts=3)
    plane, busy = DataPlaneService("Stock"), DataPlaneService("Busy", invocation_retry_policy=own)
    trips = ControlPlaneService("Trips")
    plane.handler("take")(no_input)
    plane.handler("count", invocation_retry_policy=own)(no_input)
    busy.handler("take")(no_input)
    trips.main()(book)
    (stock,), (limited,) = plane.definitions(), busy.definitions()
    assert stock.handlers["count"].invocation_retry_policy == own
    assert limited.handlers["take"].invocation_retry_policy == own
    library = [
        *hosting.definitions(),
        *schedules.definitions(),
        *approvals.definitions(approvals.ApprovalsConfig()),
        *Alerts("http://127.0.0.1:9070").definitions(),
    ]
    checked = [stock.handlers["take"], *trips.definitions()[0].handlers.values()]
    checked += [each for definition in library for each in definition.handlers.values()]
    for each in checked:
        policy = each.invocation_retry_policy
        assert policy is not None, each.name
        assert policy.max_interval is not None, each.name
        assert policy.max_interval <= timedelta(seconds=5), each.name
        assert policy.max_attempts is not None, each.name


def test_library_names_do_not_imply_read_only():
    theirs = restate.VirtualObject("Rollbacks")
    handler(theirs, "shared", name="status")(no_input)
    assert theirs.handlers["status"].metadata is None
    ours = Rollbacks().definition
    assert ours.handlers["status"].metadata == READS
    assert ours.handlers["begin"].metadata is None


def test_reject_read_only_for_writing_handlers():
    for kind, definition in (("exclusive", restate.VirtualObject("Carts")), ("main", restate.Workflow("Trips"))):
        with pytest.raises(ConfigurationError, match=f"/add: a handler of kind '{kind}' writes state"):
            handler(definition, kind, name="add", read_only=True)(no_input)
    with pytest.raises(ConfigurationError, match="Trips/run: a handler of kind 'main' writes state"):
        ControlPlaneService("Trips").main(read_only=True)(book)


async def book(cp: Orchestration) -> None: ...


async def shared(ctx: restate.WorkflowSharedContext) -> None: ...
