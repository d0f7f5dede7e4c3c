"""What operators look at: repos, blobs, hidden records and events, as JSON.

Only reads, save for `note`, which leaves a row in the audit trail for acts that change no row of
their own. Nothing here is hidden, whatever was taken down.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from pds.errors import ProtocolError
from pds.protocol.cid import Cid
from pds.protocol.data import Json
from pds.protocol.frames import decode_frame
from pds.protocol.syntax import Did, format_datetime
from pds.services.audit import Order, note_act
from pds.services.crawlers import RelayState
from pds.services.moderation import subject_not_found
from pds.store.accounts import get_account_by_did
from pds.store.app_passwords import list_app_passwords
from pds.store.blobs import Blob, count_blobs, list_held_blobs
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.events import StoredEvent, list_events
from pds.store.moderation import list_record_takedowns
from pds.store.repos import get_account_repo
from pds.store.sessions import OpenSession, count_sessions, list_open_sessions

MAX_PAGE: Final = 500
HOST: Final = "host"
"""The subject of acts about no account."""

T = TypeVar("T")


class AdminLists:
    """Reads for the operator."""

    def __init__(self, *, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    async def holdings(self, aid: int) -> dict[str, Json]:
        """Return what an account has here, by numbers."""

        def read(txn: Txn) -> dict[str, Json]:
            account = get_account_repo(txn, aid)
            if account is None:
                raise subject_not_found()
            found: dict[str, Json] = {"aid": aid, "sessions": count_sessions(txn, aid)}
            if account.repo is not None:
                wanted, here = count_blobs(txn, aid, account.repo.repo_id)
                found["rev"] = account.repo.head.rev
                found["records"] = account.repo.record_count
                found["blobs"] = here
                found["missingBlobs"] = wanted - here
            return found

        return await self._engine.read("admin.holdings", read)

    async def sessions(
        self, did: Did, *, cursor: str | None, limit: int
    ) -> tuple[list[Json], str | None]:
        """Return the open sessions of an account, and the cursor if more follow."""
        count, now_us = _page_size(limit), self._clock.now_us()

        def read(txn: Txn) -> list[tuple[str, Json]]:
            account = get_account_by_did(txn, did)
            if account is None:
                raise subject_not_found()
            names: dict[int | None, str] = {
                one.app_password_id: one.name for one in list_app_passwords(txn, account.aid)
            }
            found = list_open_sessions(
                txn, account.aid, after=cursor or "", now_us=now_us, limit=count + 1
            )
            return [(one.session_id, _session(one, names)) for one in found]

        return _cut(await self._engine.read("admin.sessions", read), count)

    async def repo(self, did: Did) -> dict[str, Json]:
        """Return the head of a repo and what is in it. Raises: RequestError `NotFound`."""

        def read(txn: Txn) -> dict[str, Json]:
            found = get_account_by_did(txn, did)
            account = None if found is None else get_account_repo(txn, found.aid)
            if account is None or account.repo is None:
                raise subject_not_found()
            repo = account.repo
            wanted, here = count_blobs(txn, account.aid, repo.repo_id)
            return {
                "did": did,
                "status": account.status.value,
                "commit": str(repo.head.commit),
                "rev": repo.head.rev,
                "data": str(repo.head.data),
                "records": repo.record_count,
                "nodes": repo.node_count,
                "blobs": here,
                "missingBlobs": wanted - here,
            }

        return await self._engine.read("admin.repo", read)

    async def hidden_records(
        self, did: Did, *, cursor: str | None, limit: int
    ) -> tuple[list[Json], str | None]:
        """Return the records of an account that are taken down, and the cursor if more follow."""
        count = _page_size(limit)

        def read(txn: Txn) -> list[tuple[str, Json]]:
            account = get_account_by_did(txn, did)
            if account is None:
                raise subject_not_found()
            found = list_record_takedowns(txn, account.aid, after=cursor or "", limit=count + 1)
            return [
                (
                    takedown.path,
                    {
                        "uri": f"at://{did}/{takedown.path}",
                        "cid": str(takedown.cid),
                        "takedownRef": takedown.takedown_ref,
                        "takenDownAt": format_datetime(takedown.taken_down_at),
                    },
                )
                for takedown in found
            ]

        return _cut(await self._engine.read("admin.hidden_records", read), count)

    async def held_blobs(
        self, did: Did, *, taken_down: bool, after: Cid | None, limit: int
    ) -> tuple[list[Json], str | None]:
        """Return blobs of an account in any state, and the cursor if more follow."""
        count = _page_size(limit)

        def read(txn: Txn) -> list[tuple[str, Json]]:
            account = get_account_by_did(txn, did)
            if account is None:
                raise subject_not_found()
            found = list_held_blobs(
                txn, account.aid, after=after, limit=count + 1, taken_down=taken_down
            )
            return [(str(blob.cid), _blob(blob)) for blob in found]

        return _cut(await self._engine.read("admin.blobs", read), count)

    async def events(
        self, *, did: Did | None, kind: str | None, cursor: str | None, limit: int
    ) -> tuple[list[Json], str | None]:
        """Return events of the firehose, the latest first, and the cursor if more follow."""
        count = _page_size(limit)
        before = int(cursor) if cursor and cursor.isascii() and cursor.isdigit() else None

        def read(txn: Txn) -> list[tuple[str, Json]]:
            aid = None
            if did is not None:
                account = get_account_by_did(txn, did)
                if account is None:
                    raise subject_not_found()
                aid = account.aid
            found = list_events(txn, before=before, aid=aid, kind=kind, limit=count + 1)
            return [(str(event.seq), _event(event, at)) for event, at in found]

        return _cut(await self._engine.read("admin.events", read), count)

    async def note(self, act: str, order: Order) -> None:
        """Leave a row about an act that concerns the host as a whole."""

        def note(txn: Txn, now_us: int) -> None:
            note_act(txn, order, act, HOST, now_us=now_us)

        await self._engine.transact("admin.note", note, self._clock.now_us())


def relay_view(relay: RelayState) -> dict[str, Json]:
    """Return how a relay answered the last request."""
    return {
        "url": relay.url,
        "accepted": relay.accepted_at_s is not None and relay.failures == 0,
        "error": relay.last_error,
    }


def _session(session: OpenSession, app_passwords: Mapping[int | None, str]) -> Json:
    return {
        "scope": session.scope,
        "appPassword": app_passwords.get(session.app_password_id),
        "openedAt": format_datetime(session.opened_at),
        "renewedAt": format_datetime(session.renewed_at),
        "expiresAt": format_datetime(session.expires_at),
    }


def _blob(blob: Blob) -> dict[str, Json]:
    view: dict[str, Json] = {
        "cid": str(blob.cid),
        "mimeType": blob.mime_type,
        "size": blob.size,
        "createdAt": format_datetime(blob.created_at),
        "temporary": blob.is_temporary,
    }
    if blob.takedown_ref is not None:
        view["takedownRef"] = blob.takedown_ref
    return view


def _event(event: StoredEvent, at_us: int) -> dict[str, Json]:
    view: dict[str, Json] = {
        "seq": event.seq,
        "at": format_datetime(at_us),
        "kind": event.kind,
        "bytes": len(event.frame),
    }
    try:
        payload: dict[str, Any] = decode_frame(event.frame).payload
    except ProtocolError as error:
        return view | {"error": str(error)}
    view["did"] = payload.get("repo") or payload.get("did")
    for name in ("rev", "handle", "active", "status"):
        if payload.get(name) is not None:
            view[name] = payload[name]
    if "ops" in payload:
        view["ops"] = [f"{op['action']} {op['path']}" for op in payload["ops"]]
    return view


def _page_size(limit: int) -> int:
    return max(1, min(limit, MAX_PAGE))


def _cut(found: Sequence[tuple[str, Json]], count: int) -> tuple[list[Json], str | None]:
    """Return a page and the key of its last entry, if more follow."""
    more = found[count - 1][0] if len(found) > count else None
    return [view for _, view in found[:count]], more
