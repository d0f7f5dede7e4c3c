"""What every order of an operator is made of: its input by name and type, and who has given it.

The orders themselves are in `admin_api`, which joins to its own those about keeping and rescuing
accounts (`admin_keeping`), moves (`migration_orders`) and host names (`hostname_orders`).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pds.errors import RequestError
from pds.protocol.data import Json
from pds.protocol.syntax import Did
from pds.services.audit import Order
from pds.services.moderation import subject_not_found

if TYPE_CHECKING:
    from pds.services import Services


MAX_PAGE: Final = 500

_CURSOR: Final = re.compile("[0-9]{1,18}")


class Fields:
    """The input of a call, read by name and type. Raises: RequestError `InvalidRequest`."""

    def __init__(self, values: Mapping[str, Json]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        """Return a text that must be there."""
        value = self.maybe_text(name)
        if value is None:
            raise RequestError("InvalidRequest", f"{name} is missing")
        return value

    def maybe_text(self, name: str) -> str | None:
        """Return a text, if there is one."""
        value: str | None = self._get(name, str)
        return value

    def number(self, name: str, default: int) -> int:
        """Return an integer."""
        value: int | None = self._get(name, int)
        return default if value is None else value

    def page_size(self, default: int) -> int:
        """Return how many entries are wanted: at least one, and no more than a page takes."""
        return max(1, min(self.number("limit", default), MAX_PAGE))

    def number_cursor(self) -> str | None:
        """Return the cursor of a list that is in the order of numbers, if there is one."""
        cursor = self.maybe_text("cursor")
        if cursor is not None and not _CURSOR.fullmatch(cursor):
            raise RequestError("InvalidRequest", "Malformed cursor")
        return cursor

    def flag(self, name: str) -> bool:
        """Return a yes or no; no by default."""
        return self._get(name, bool) is True

    def maybe_object(self, name: str) -> dict[str, Json] | None:
        """Return an object, if there is one."""
        value: dict[str, Json] | None = self._get(name, dict)
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""
        values: list[Any] = self._get(name, list) or []
        if not all(isinstance(value, str) for value in values):
            raise RequestError("InvalidRequest", f"{name} must be a list of texts")
        return values

    def _get(self, name: str, kind: type[Any]) -> Any:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise RequestError("InvalidRequest", f"{name} must be of type {kind.__name__}")
        return value


@dataclass(frozen=True, slots=True)
class Asked:
    """One call: what to do it with, what was told, and on whose order."""

    services: Services
    fields: Fields
    order: Order

    async def did(self) -> Did:
        """Return the DID of the account that the field `account` names."""
        name = self.fields.text("account").removeprefix("@")
        account = await self.services.accounts.lookup(name)
        if account is None:
            raise subject_not_found()
        return account.did


Act = Callable[[Asked], Awaitable[dict[str, Json]]]
"""Carries out one order."""
