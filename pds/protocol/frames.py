"""Firehose frames: the binary messages of `com.atproto.sync.subscribeRepos`.

A frame is two DAG-CBOR maps in a row: a header (`op`, `t`) and a payload (SYNC-2). These functions
build the bytes that are stored in the event table and sent as they are; the number and the instant
come from the writer, when the order of events is settled.

Spec: event-stream#framing, sync#repository-event-stream (SYNC-30, SYNC-33, SYNC-34, SYNC-35)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from pds.errors import ProtocolError
from pds.protocol import cbor
from pds.protocol.cid import Cid
from pds.protocol.syntax import format_datetime

MAX_FRAME_BYTES: Final = 5_000_000
"""Longest message: relays drop the connection beyond it (SYNC-5)."""
MAX_COMMIT_CAR_BYTES: Final = 2_000_000
"""Longest `blocks` of a commit (REPO-80)."""
MAX_SYNC_CAR_BYTES: Final = 10_000
"""Longest `blocks` of a `#sync` (REPO-80)."""
MAX_COMMIT_OPS: Final = 200
"""Most operations in one commit (REPO-80)."""

Action = Literal["create", "update", "delete"]


class FrameError(ProtocolError):
    """Bytes that are not a frame, or an event over a limit of the wire."""


class RepoOp(NamedTuple):
    """One change that a commit made: `cid` is the new record, `prev` the one before."""

    action: Action
    path: str
    cid: Cid | None
    prev: Cid | None

    def to_data(self) -> dict[str, cbor.Data]:
        """Return the wire form: `cid` always, `prev` only when there was a record (SYNC-30)."""
        op: dict[str, cbor.Data] = {"action": self.action, "path": self.path, "cid": self.cid}
        if self.prev is not None:
            op["prev"] = self.prev
        return op


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded message. `type` is the name after `#`'s, for example `#commit`; empty on errors."""

    op: int
    type: str
    payload: dict[str, cbor.Data]


def encode_commit_frame(
    *,
    seq: int,
    at_us: int,
    did: str,
    commit: Cid,
    rev: str,
    since: str | None,
    blocks: bytes,
    ops: Sequence[RepoOp],
    prev_data: Cid | None,
) -> bytes:
    """Return the `#commit` frame of one commit.

    `since` and `prev_data` are None for the first commit of a repo only (REPO-70).
    Raises: FrameError when a limit is passed (SYNC-31).
    """
    if len(blocks) > MAX_COMMIT_CAR_BYTES or len(ops) > MAX_COMMIT_OPS:
        raise FrameError("commit too large for one event")
    payload: dict[str, cbor.Data] = {
        "seq": seq,
        "time": format_datetime(at_us),
        "repo": did,
        "commit": commit,
        "rev": rev,
        "since": since,
        "blocks": blocks,
        "ops": [op.to_data() for op in ops],
        "blobs": [],
        "tooBig": False,
        "rebase": False,
    }
    if prev_data is not None:
        payload["prevData"] = prev_data
    return _frame(_COMMIT, payload)


def encode_sync_frame(*, seq: int, at_us: int, did: str, rev: str, blocks: bytes) -> bytes:
    """Return a `#sync` frame; `blocks` is a CAR of the commit block alone (SYNC-33).

    Raises: FrameError when a limit is passed.
    """
    if len(blocks) > MAX_SYNC_CAR_BYTES:
        raise FrameError("commit block too large for a sync event")
    time = format_datetime(at_us)
    return _frame(_SYNC, {"seq": seq, "time": time, "did": did, "rev": rev, "blocks": blocks})


def encode_identity_frame(*, seq: int, at_us: int, did: str, handle: str | None = None) -> bytes:
    """Return an `#identity` frame; the handle is left out when it is not known (SYNC-34)."""
    payload: dict[str, cbor.Data] = {"seq": seq, "time": format_datetime(at_us), "did": did}
    if handle is not None:
        payload["handle"] = handle
    return _frame(_IDENTITY, payload)


def encode_account_frame(
    *, seq: int, at_us: int, did: str, active: bool, status: str | None = None
) -> bytes:
    """Return an `#account` frame; an inactive account must say why (SYNC-35).

    Raises: FrameError when `active` and `status` do not fit.
    """
    if not active and status is None:
        raise FrameError("an inactive account needs a status")
    payload: dict[str, cbor.Data] = {
        "seq": seq,
        "time": format_datetime(at_us),
        "did": did,
        "active": active,
    }
    if status is not None:
        payload["status"] = status
    return _frame(_ACCOUNT, payload)


def encode_info_frame(name: str, message: str | None = None) -> bytes:
    """Return an `#info` frame, which has no number (SYNC-17)."""
    return _frame(_INFO, _named("name", name, message))


def encode_error_frame(name: str, message: str | None = None) -> bytes:
    """Return an error frame, after which the stream is closed (SYNC-3)."""
    return _frame(_ERROR, _named("error", name, message))


def decode_frame(content: bytes) -> Frame:
    """Decode a message strictly. Unknown types are returned as they are.

    Raises: FrameError.
    """
    if len(content) > MAX_FRAME_BYTES:
        raise FrameError("frame too large")
    try:
        header, end = cbor.decode_prefix(content)
        payload = cbor.decode(content[end:])
    except cbor.CborError as error:
        raise FrameError(f"bad frame: {error}") from error
    if type(header) is not dict or type(payload) is not dict:
        raise FrameError("a frame is two maps")
    op, name = header.get("op"), header.get("t", "")
    if type(op) is not int or type(name) is not str:
        raise FrameError("bad frame header")
    if (op == 1) != bool(name) and op in {1, -1}:
        raise FrameError("bad frame header: t")
    return Frame(op, name, payload)


def _named(key: str, name: str, message: str | None) -> dict[str, cbor.Data]:
    payload: dict[str, cbor.Data] = {key: name}
    if message is not None:
        payload["message"] = message
    return payload


def _frame(header: bytes, payload: dict[str, cbor.Data]) -> bytes:
    frame = header + cbor.encode_trusted(payload)
    if len(frame) > MAX_FRAME_BYTES:
        raise FrameError("frame too large")
    return frame


_COMMIT: Final = cbor.encode_python({"op": 1, "t": "#commit"})
_SYNC: Final = cbor.encode_python({"op": 1, "t": "#sync"})
_IDENTITY: Final = cbor.encode_python({"op": 1, "t": "#identity"})
_ACCOUNT: Final = cbor.encode_python({"op": 1, "t": "#account"})
_INFO: Final = cbor.encode_python({"op": 1, "t": "#info"})
_ERROR: Final = cbor.encode_python({"op": -1})
