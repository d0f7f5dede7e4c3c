"""Takes over what a reference PDS has outside its accounts: invite codes, reserved keys, events.

Events keep their numbers, so a reader that followed the old host goes on with its cursor: each is
taken apart and encoded anew, which also shows that it is well formed. Those that are older than the
window of this host are left behind, and readers with such a cursor are told so (SYNC-17). After
that the numbers rise to the present time, above all that were given out before.

Each part may be run again after it was cut off.

Spec: (SYNC-10, SYNC-11, SYNC-17, SYNC-30, ACC-25)
"""

import asyncio
import secrets
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

from pds.errors import Corrupt, ProtocolError
from pds.protocol import cbor
from pds.protocol.cid import Cid
from pds.protocol.frames import (
    RepoOp,
    encode_account_frame,
    encode_commit_frame,
    encode_identity_frame,
    encode_sync_frame,
)
from pds.protocol.keys import InvalidKey, make_signer
from pds.protocol.syntax import format_datetime
from pds.services.reserved_keys import seal_subject
from pds.store.accounts import get_account_by_did
from pds.store.engine import Engine, Txn
from pds.store.events import get_foreign_position, insert_foreign_events, note_missing_through
from pds.store.invites import (
    InviteCode,
    get_invite_code,
    insert_invite_codes,
    insert_invite_use,
)
from pds.store.keystore import NONCE_BYTES, Keystore
from pds.store.reference_reader import ReferenceEvent, ReferenceHost, ReferenceInvite
from pds.store.reserved_keys import (
    ReservedKey,
    delete_reserved_did_key,
    insert_reserved_key,
)

INVITE_BATCH: Final = 100
EVENT_BATCH: Final = 200
EVENT_BATCH_BYTES: Final = 4_000_000

_KINDS: Final = {"append": "commit", "sync": "sync", "identity": "identity", "account": "account"}


@dataclass(slots=True)
class EventReport:
    """What became of the events. Numbers are those of the old host."""

    last_seq: int
    first_seq: int = 0
    """The first that was taken over; 0 when none was."""
    events: int = 0
    skipped: int = 0
    """Events in a form that is no longer allowed on the wire."""
    next_after: int = 0
    """The next event of this host is numbered higher than this."""


class BadEvent(ProtocolError):
    """A row of the sequencer that is no event of today's form."""


def build_frame(event: ReferenceEvent) -> tuple[str, bytes]:
    """Return kind and frame of an event, under its old number. Raises: BadEvent, FrameError."""
    try:
        payload: Any = cbor.decode(event.content)
    except cbor.CborError as error:
        raise BadEvent("not canonical CBOR") from error
    kind = _KINDS.get(event.kind)
    if kind is None or not isinstance(payload, dict):
        raise BadEvent(f"an event of kind {event.kind!r}")
    seq, at_us = event.seq, event.at_us
    try:
        if kind == "identity":
            return kind, encode_identity_frame(
                seq=seq, at_us=at_us, did=payload["did"], handle=payload.get("handle")
            )
        if kind == "account":
            return kind, encode_account_frame(
                seq=seq,
                at_us=at_us,
                did=payload["did"],
                active=payload["active"],
                status=payload.get("status"),
            )
        if kind == "sync":
            return kind, encode_sync_frame(
                seq=seq,
                at_us=at_us,
                did=payload["did"],
                rev=payload["rev"],
                blocks=payload["blocks"],
            )
        if payload["tooBig"] or payload["rebase"]:
            raise BadEvent("a commit without its blocks")
        return kind, encode_commit_frame(
            seq=seq,
            at_us=at_us,
            did=payload["repo"],
            commit=_cid(payload["commit"]),
            rev=payload["rev"],
            since=payload["since"],
            blocks=payload["blocks"],
            ops=[_op(op) for op in payload["ops"]],
            prev_data=payload.get("prevData"),
        )
    except (KeyError, TypeError) as error:
        raise BadEvent(f"an event without {error}") from error


def _op(op: dict[str, Any]) -> RepoOp:
    return RepoOp(op["action"], op["path"], op["cid"], op.get("prev"))


def _cid(value: object) -> Cid:
    if not isinstance(value, Cid):
        raise BadEvent("a commit without its CID")
    return value


class EventImport:
    """Takes over the events of a host whose accounts are all here."""

    def __init__(
        self,
        host: ReferenceHost,
        engine: Engine,
        *,
        window_s: float,
        without: Collection[str] = (),
    ) -> None:
        self._host = host
        self._without = without
        self._engine = engine
        self._window_s = window_s

    async def run(self, now_us: int, advance: Callable[[int], None]) -> EventReport:
        """Insert the events, and raise the numbers of this host above them."""
        last_seq = self._host.last_seq()
        report = EventReport(last_seq)
        outdated = last_outdated(self._host, window_s=self._window_s, now_us=now_us)
        await self._engine.transact("takeover.outdated", note_missing_through, outdated)
        done = await self._engine.read("takeover.position", get_foreign_position)
        events = (
            event
            for event in self._host.list_events(max(outdated, done))
            if event.did not in self._without
        )
        batches = _batches(events, report)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            await self._engine.transact(
                "takeover.events", _insert_events, batch, last_seq, bulk=True
            )
            advance(len(batch))
        report.next_after = await self._engine.raise_seq(max(last_seq, now_us))
        return report


def last_outdated(host: ReferenceHost, *, window_s: float, now_us: int) -> int:
    """Return the last number that is too old to be taken over, 0 for none."""
    return host.last_seq_before(format_datetime(max(0, now_us - round(window_s * 1_000_000))))


_Framed = tuple[ReferenceEvent, str, bytes]


def _batches(events: Iterator[ReferenceEvent], report: EventReport) -> Iterator[list[_Framed]]:
    batch: list[_Framed] = []
    size = 0
    for event in events:
        try:
            kind, frame = build_frame(event)
        except ProtocolError:
            report.skipped += 1
            continue
        report.first_seq = report.first_seq or event.seq
        report.events += 1
        batch.append((event, kind, frame))
        size += len(frame)
        if len(batch) >= EVENT_BATCH or size >= EVENT_BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _insert_events(txn: Txn, batch: list[_Framed], last_seq: int) -> None:
    """Insert events under the numbers of their accounts.

    An account that was deleted gets a number that is nobody's: what is left of it, the word that it
    is gone, is told to all.
    """
    aids: dict[str, int] = {}
    rows = []
    for event, kind, frame in batch:
        if event.did not in aids:
            account = get_account_by_did(txn, event.did)
            aids[event.did] = txn.next_id("account") if account is None else account.aid
        rows.append((event.seq, aids[event.did], kind, event.at_us, frame))
    insert_foreign_events(txn, rows, through=last_seq)


async def import_invites(host: ReferenceHost, engine: Engine) -> int:
    """Take over invite codes with their uses; return how many codes there are."""
    count = 0
    batch: list[ReferenceInvite] = []
    for invite in host.list_invites():
        batch.append(invite)
        count += 1
        if len(batch) == INVITE_BATCH:
            await engine.transact("takeover.invites", _insert_invites, tuple(batch), bulk=True)
            batch = []
    await engine.transact("takeover.invites", _insert_invites, tuple(batch), bulk=True)
    return count


def _insert_invites(txn: Txn, invites: tuple[ReferenceInvite, ...]) -> None:
    """Insert codes that are not here yet; a use by an account that is gone still counts."""
    for invite in invites:
        if get_invite_code(txn, invite.code) is not None:
            continue
        code = InviteCode(
            invite.code,
            invite.use_count,
            invite.disabled,
            invite.for_account,
            invite.created_by,
            invite.created_at,
        )
        insert_invite_codes(txn, [code])
        for did, at in invite.uses:
            account = get_account_by_did(txn, did)
            aid = txn.next_id("account") if account is None else account.aid
            insert_invite_use(txn, invite.code, aid=aid, now_us=at)


async def import_reserved_keys(host: ReferenceHost, engine: Engine, keystore: Keystore) -> int:
    """Take over keys that wait for their accounts; return how many.

    Raises: Corrupt for a file that is no key.
    """
    keys = []
    for name, secret, made_at in host.list_reserved_keys():
        try:
            did_key = make_signer("k256", secret).public_key.did_key
        except (InvalidKey, ValueError) as error:
            raise Corrupt(f"the reserved key {name} is no key") from error
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = keystore.seal(seal_subject(did_key), secret, nonce=nonce)
        did = None if name.startswith("did:key:") else name
        keys.append(ReservedKey(did_key, did, sealed, made_at))
    await engine.transact("takeover.reserved", _insert_reserved, tuple(keys))
    return len(keys)


def _insert_reserved(txn: Txn, keys: tuple[ReservedKey, ...]) -> None:
    for key in keys:
        delete_reserved_did_key(txn, key.did_key)
        insert_reserved_key(txn, key)
