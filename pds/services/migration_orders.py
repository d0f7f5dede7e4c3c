"""Moves as orders by name, for `pds migrate` (see `admin_api`).

An order that changes something leaves a row in the audit trail. Passwords and codes are in the
order only: they are used once, and stand in no row and no log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import orjson

from pds.errors import RequestError
from pds.protocol.data import Json
from pds.services.migration import MoveInRequest, MoveOutRequest
from pds.services.migration_work import Given

if TYPE_CHECKING:
    from pds.services.admin_orders import Asked, Fields

Act = Callable[["Asked"], Awaitable[dict[str, Json]]]
DEFAULT_LIMIT: Final = 50


async def _plan_in(asked: Asked) -> dict[str, Json]:
    fields = asked.fields
    return await asked.services.migration.plan_in(
        fields.text("account"), handle=fields.maybe_text("handle")
    )


async def _start_in(asked: Asked) -> dict[str, Json]:
    fields = asked.fields
    if asked.order.is_rehearsal:
        return await _plan_in(asked)
    view = await asked.services.migration.start_in(
        MoveInRequest(
            account=fields.text("account"),
            handle=fields.maybe_text("handle"),
            email=fields.maybe_text("email"),
            leaves_old=not fields.flag("staysActiveThere"),
            keeps_old_keys=fields.flag("keepsOldKeys"),
            given=_given(fields),
        )
    )
    await asked.services.migration.note(asked.order, "account.move-in", view)
    return view


async def _start_out(asked: Asked) -> dict[str, Json]:
    fields = asked.fields
    view = await asked.services.migration.start_out(
        MoveOutRequest(
            account=fields.text("account"),
            url=fields.text("url"),
            handle=fields.maybe_text("handle"),
            email=fields.maybe_text("email"),
            leaves_old=not fields.flag("staysActiveHere"),
            keeps_old_keys=fields.flag("keepsOldKeys"),
            by_operator=fields.flag("yes"),
            owner_password=fields.maybe_text("ownerPassword"),
            given=_given(fields),
        )
    )
    await asked.services.migration.note(asked.order, "account.move-out", view)
    return view


async def _go_on(asked: Asked) -> dict[str, Json]:
    return await asked.services.migration.go_on(asked.fields.text("account"), _given(asked.fields))


async def _finish_sign_in(asked: Asked) -> dict[str, Json]:
    query = asked.fields.text("url").strip().partition("?")[2].partition("#")[0]
    return await asked.services.migration.finish_sign_in(query)


async def _undo(asked: Asked) -> dict[str, Json]:
    view = await asked.services.migration.undo(asked.fields.text("account"))
    await asked.services.migration.note(asked.order, "account.move-undo", view)
    return view


async def _show(asked: Asked) -> dict[str, Json]:
    return await asked.services.migration.look(asked.fields.text("account"))


async def _list(asked: Asked) -> dict[str, Json]:
    fields = asked.fields
    views, cursor = await asked.services.migration.list_all(
        cursor=fields.number_cursor(), limit=fields.page_size(DEFAULT_LIMIT)
    )
    page: dict[str, Json] = {"moves": list(views)}
    if cursor is not None:
        page["cursor"] = cursor
    return page


MOVE_ACTS: Final[Mapping[str, Act]] = MappingProxyType(
    {
        "move.plan-in": _plan_in,
        "move.start-in": _start_in,
        "move.start-out": _start_out,
        "move.go-on": _go_on,
        "move.finish-sign-in": _finish_sign_in,
        "move.undo": _undo,
        "move.show": _show,
        "move.list": _list,
    }
)
"""The orders by name."""


def _given(fields: Fields) -> Given:
    return Given(
        password=fields.maybe_text("password"),
        auth_factor_token=fields.maybe_text("authFactorToken"),
        service_token=fields.maybe_text("serviceToken"),
        new_password=fields.maybe_text("newPassword"),
        invite_code=fields.maybe_text("inviteCode"),
        plc_token=fields.maybe_text("plcToken"),
        operation=_operation(fields.maybe_text("operation")),
        accepts_missing=fields.flag("acceptsMissing"),
        requests_token=fields.flag("requestsToken"),
        uses_oauth=fields.flag("oauth"),
    )


def _operation(text: str | None) -> dict[str, Any] | None:
    """Read a signed operation, or an answer that holds one as `operation`."""
    if text is None:
        return None
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError("InvalidRequest", "operation must be JSON") from error
    if isinstance(content, dict) and isinstance(content.get("operation"), dict):
        content = content["operation"]
    if not isinstance(content, dict):
        raise RequestError("InvalidRequest", "operation must be a JSON object")
    return content
