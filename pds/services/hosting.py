"""What this host says of itself to relays and indexers: how it is, and who has what here.

`getHostStatus` and `listHosts` are methods of relays, which know many hosts; this one knows itself.
An answer of that form lets the same tool look at a relay and at a host (SYNC-60).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pds.errors import RequestError
from pds.protocol.syntax import Did
from pds.store.engine import Engine, Txn
from pds.store.repos import count_repos, get_highest_aid, list_repos_with

MAX_SCANNED: Final = 10_000
"""Accounts looked at for one page: each costs one step in an index, 5 us or so."""
MAX_CURSOR_CHARS: Final = 18


@dataclass(frozen=True, slots=True)
class HostStatus:
    """This host as a relay would describe it; it answers, so it is active."""

    hostname: str
    seq: int
    account_count: int
    status: str = "active"


class Hosting:
    """Answers questions about this host as a whole."""

    def __init__(
        self, *, engine: Engine, hostname: str, former_hostnames: Sequence[str] = ()
    ) -> None:
        self._engine = engine
        self._hostname = hostname
        self._names = frozenset({hostname.lower(), *former_hostnames})

    async def status(self, hostname: str) -> HostStatus:
        """Return how this host is; asked for by a former name, it answers with the present one.

        Raises: RequestError `HostNotFound` for every other one.
        """
        if hostname.strip().lower().rstrip(".") not in self._names:
            raise RequestError("HostNotFound", "This server knows of no host but itself")
        return await self._own_status()

    async def list_hosts(self, *, cursor: str | None = None) -> list[HostStatus]:
        """Return this host; nothing comes after it."""
        return [] if cursor is not None else [await self._own_status()]

    async def _own_status(self) -> HostStatus:
        count = await self._engine.read("sync.host", count_repos)
        return HostStatus(self._hostname, self._engine.last_seq, count)

    async def list_repos_with(
        self, collection: str, *, limit: int = 500, cursor: str | None = None
    ) -> tuple[list[Did], str | None]:
        """Return active repos with a record in `collection`, and the cursor if more may follow.

        Where few have one, pages may be short or empty: only so many accounts are looked at.
        Raises: RequestError `InvalidRequest` for a cursor that is not ours. Spec: SYNC-73
        """
        after = _parse_cursor(cursor)
        return await self._engine.read("sync.by_collection", _read_page, collection, after, limit)


def _parse_cursor(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > MAX_CURSOR_CHARS:
        raise RequestError("InvalidRequest", "Malformed cursor")
    return int(cursor)


def _read_page(txn: Txn, collection: str, after: int, limit: int) -> tuple[list[Did], str | None]:
    highest = get_highest_aid(txn)
    last = min(after + MAX_SCANNED, highest)
    found = list_repos_with(txn, collection, after_aid=after, last_aid=last, limit=limit)
    if len(found) == limit:
        last = found[-1][0]
    return [did for _aid, did in found], str(last) if last < highest else None
