"""Orders about the name of this host."""

from collections.abc import Mapping
from typing import Any, Final

from pds.errors import RequestError
from pds.protocol.data import Json
from pds.services.admin_orders import Act, Asked
from pds.services.hostname_change import MAX_PAGE


async def _check(asked: Asked) -> dict[str, Json]:
    found: list[Any] = [
        {"url": reach.url, "current": reach.is_current, "problem": reach.problem}
        for reach in await asked.services.hostname_change.check()
    ]
    return {"names": found}


async def _move(asked: Asked) -> dict[str, Json]:
    fields = asked.fields
    cursor = fields.maybe_text("cursor")
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise RequestError("InvalidRequest", "Malformed cursor")
    dids = fields.texts("accounts")
    service = asked.services.hostname_change
    page = await service.page(
        asked.order,
        handles=fields.flag("handles"),
        dids=dids or None,
        after_aid=int(cursor or 0),
        limit=fields.number("limit", MAX_PAGE),
    )
    entries: list[Any] = [entry.to_json() for entry in page.entries]
    answer: dict[str, Json] = {
        "from": list(service.former_urls),
        "to": service.url,
        "accounts": entries,
        "total": page.total,
        "pauseMs": round(page.pause_s * 1000),
        "stuck": page.is_stuck,
    }
    if page.after_aid is not None:
        answer["cursor"] = str(page.after_aid)
    return answer


HOSTNAME_ACTS: Final[Mapping[str, Act]] = {"hostname.check": _check, "hostname.move": _move}
"""The orders by their names."""
