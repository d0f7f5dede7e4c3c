"""What an old host took in after the last look at it: found, and carried over if it can be.

The account is active here and, if its owner wants that, deactivated there. If the head there is
past what was copied, the trees are compared: whatever differs is a write of the one or the other
host. Records that were written or deleted here since the activation are left as they are; our own
events say which, and what they were before (`_read_before`). The rest are writes of the old host,
made before anybody could know of the switch, and become ordinary writes here, each on the condition
that its record still is what that host had before. What cannot be carried over is counted and told,
with the revs between which it lies.

That host is asked for what is new. If what was written here has replaced nodes that its tree still
has, it is asked for all of the repo, which has to be small then.

Spec: (ACC-43, ACC-50, ACC-54, XRPC-95)
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pds.errors import RemoteError, RequestError
from pds.log import get_logger
from pds.protocol.cbor import decode_json
from pds.protocol.cid import Cid
from pds.protocol.frames import FrameError, decode_frame
from pds.protocol.repo import Action
from pds.services.import_difference import DIFFERENCE, Difference, DifferenceOp
from pds.services.migration_blobs import copy_named
from pds.services.migration_problems import MoveProblem
from pds.services.migration_work import Work
from pds.services.records_prepare import RecordWrite
from pds.services.repo_txn import COMMIT, SYNC
from pds.services.repos import MAX_WRITES
from pds.store.engine import Txn
from pds.store.events import CONTENT_KINDS, StoredEvent, list_events
from pds.store.records import get_record_with_rev
from pds.store.repos import get_account_repo

BATCH_BYTES: Final = 500_000
"""Records of one commit; with its nodes it stays below what relays take (REPO-80)."""
TRIES: Final = 3
"""Comparisons, in case the owner writes here at the same moment."""
EVENT_PAGE: Final = 10
MAX_EVENT_PAGES: Final = 100
"""Events since the activation that are gone through, a few at a time, as they may be large."""

_log: Final = get_logger(__name__)


@dataclass(slots=True)
class _Late:
    """One write of the old host."""

    op: DifferenceOp
    block: bytes | None
    blobs: list[Cid] = field(default_factory=list)

    @property
    def write(self) -> RecordWrite:
        op = self.op
        collection, _, rkey = op.path.partition("/")
        if self.block is None:
            return RecordWrite("delete", collection, rkey, swap=op.before)
        action: Action = "create" if op.before is None else "update"
        return RecordWrite(action, collection, rkey, decode_json(self.block), swap=op.before)


@dataclass(slots=True)
class _Tally:
    carried: int = 0
    lost: dict[str, str] = field(default_factory=dict)
    """Path, and why it could not be carried over."""


async def look_back(work: Work) -> None:
    """Carry over what the old host took in after the last look; warn of what stays behind."""
    state, host = work.state, work.host
    copied = state.copied_rev
    if copied is None:
        return
    try:
        _, rev = await host.get_latest(work.did)
        if rev <= copied:
            return
        tally = await _carry_over(work, copied, rev)
    except (RemoteError, RequestError, MoveProblem) as error:
        state.warn(
            f"What {host.name} took in after rev {copied}, where the last look at it was, could not"
            f" be looked at: {error}. If anything is missing here, it is in the repo there"
        )
        return
    state.carried_over += tally.carried
    if tally.lost:
        path, reason = next(iter(tally.lost.items()))
        state.warn(
            f"{len(tally.lost)} writes that {host.name} took in between rev {copied}, where the"
            f" last look at it was, and rev {rev} were not carried over, such as {path}: {reason}."
            " They are in the repo there; write again what is missing here"
        )
    state.copied_rev = rev
    _log.info(
        "move.looked_back",
        did=work.did,
        copied_rev=copied,
        rev=rev,
        carried=tally.carried,
        lost=len(tally.lost),
    )


async def _carry_over(work: Work, copied: str, rev: str) -> _Tally:
    tally = _Tally()
    found = await _compare(work, copied, rev)
    late = await _find_late(work, found, tally)
    missing = await copy_named(work, [str(cid) for entry in late for cid in entry.blobs])
    ready: list[_Late] = []
    for entry in late:
        gone = next((cid for cid in entry.blobs if str(cid) in missing), None)
        if gone is None:
            ready.append(entry)
        else:
            tally.lost[entry.op.path] = f"its blob {gone} could not be had"
    for batch in _batches(ready):
        await _write(work, batch, tally)
    return tally


async def _compare(work: Work, copied: str, rev: str) -> Difference:
    """Return how the repo here differs from the one there. Raises: RequestError, RemoteError."""
    try:
        return await _compare_with(work, copied, rev)
    except RequestError:
        return await _compare_with(work, None, rev)


async def _compare_with(work: Work, since: str | None, rev: str) -> Difference:
    async with work.host.open_repo(work.did, since=since, max_bytes=DIFFERENCE.car_bytes) as chunks:
        car = b"".join([chunk async for chunk in chunks])
    tries = TRIES
    while True:
        tries -= 1
        try:
            return await work.parts.repo_imports.compare(
                work.owner, car, former_key=work.state.source_key, min_rev=rev
            )
        except RequestError:
            if not tries:
                raise


async def _find_late(work: Work, found: Difference, tally: _Tally) -> list[_Late]:
    """Return the writes of the old host; those that contradict one made here are lost."""
    before = await work.parts.engine.read(
        "move.late", _read_before, work.aid, work.state.held_rev, found.ops
    )
    blocks, blobs = _new_records(found)
    late: list[_Late] = []
    for op in found.ops:
        if op.path not in before:
            late.append(_Late(op, blocks.get(op.path), blobs[op.path]))
        elif before[op.path] != op.after:
            is_here = op.before is not None
            tally.lost[op.path] = f"it was {'written' if is_here else 'deleted'} here, too"
    return late


def _read_before(
    txn: Txn, aid: int, held_rev: str | None, ops: Sequence[DifferenceOp]
) -> dict[str, Cid | None]:
    """Return, by path, what those records were that have been written here since the activation.

    When the events do not go back so far, any record may have been written here that is younger, or
    that is not here; what it was before is unknown then, which is as good as anything.
    """
    account = get_account_repo(txn, aid)
    if account is None or account.repo is None:
        return {}
    before = None if held_rev is None else _read_events(txn, aid, held_rev)
    if before is not None:
        return before
    rows = {op.path: get_record_with_rev(txn, account.repo.repo_id, op.path) for op in ops}
    return {path: None for path, row in rows.items() if row is None or row[1] > (held_rev or "")}


def _read_events(txn: Txn, aid: int, since: str) -> dict[str, Cid | None] | None:
    """Go back to the rev `since`; return None unless all is there, up to the `#sync` behind it.

    That is the activation's: before it an account writes nothing.
    """
    before: dict[str, Cid | None] = {}
    at, oldest = None, ""
    for _ in range(MAX_EVENT_PAGES):
        page = list_events(txn, before=at, aid=aid, limit=EVENT_PAGE)
        for event, _at in page:
            if event.kind not in CONTENT_KINDS:
                continue
            payload = _payload_of(event)
            if payload.get("rev", "") <= since:
                return before if oldest == SYNC else None
            if event.kind == COMMIT:
                before |= {op["path"]: op.get("prev") for op in payload["ops"]}
            oldest = event.kind
        if len(page) < EVENT_PAGE:
            return before if oldest == SYNC else None
        at = page[-1][0].seq
    return None


def _payload_of(event: StoredEvent) -> dict[str, Any]:
    """Return what an event says; those of a program that was here before ours may be no frames."""
    try:
        return dict(decode_frame(event.frame).payload)
    except FrameError:
        return {}


def _new_records(found: Difference) -> tuple[dict[str, bytes], defaultdict[str, list[Cid]]]:
    blocks: dict[str, bytes] = {}
    blobs: defaultdict[str, list[Cid]] = defaultdict(list)
    for batch in found.batches():
        blocks |= {path: block for path, _, block in batch.records}
        for cid, path in batch.blob_refs:
            blobs[path].append(cid)
    return blocks, blobs


def _batches(late: Sequence[_Late]) -> Iterator[list[_Late]]:
    batch: list[_Late] = []
    size = 0
    for entry in late:
        length = len(entry.block or b"")
        if batch and (len(batch) == MAX_WRITES or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += length
    if batch:
        yield batch


async def _write(work: Work, batch: Sequence[_Late], tally: _Tally) -> None:
    """Write a batch as one commit; if it cannot be, each of it by itself."""
    try:
        await work.parts.repos.write(work.aid, [entry.write for entry in batch], validate=False)
    except RequestError as error:
        if len(batch) == 1:
            tally.lost[batch[0].op.path] = error.message
            return
        for entry in batch:
            await _write(work, [entry], tally)
    else:
        tally.carried += len(batch)
