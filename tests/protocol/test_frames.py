"""Firehose frames: exact fields of every message, limits, strict decoding.

Spec: SYNC-2, SYNC-3, SYNC-30, SYNC-31, SYNC-33, SYNC-34, SYNC-35.
"""

from typing import Any

import cbor2
import pytest
from atproto import firehose_models, models, parse_subscribe_repos_message
from hypothesis import given
from hypothesis import strategies as st

from pds.protocol import cbor
from pds.protocol.cid import Cid
from pds.protocol.frames import (
    MAX_COMMIT_CAR_BYTES,
    MAX_COMMIT_OPS,
    MAX_FRAME_BYTES,
    MAX_SYNC_CAR_BYTES,
    FrameError,
    RepoOp,
    decode_frame,
    encode_account_frame,
    encode_commit_frame,
    encode_error_frame,
    encode_identity_frame,
    encode_info_frame,
    encode_sync_frame,
)

NEW, OLD, COMMIT, DATA = (Cid.of_data(name.encode()) for name in ("new", "old", "commit", "data"))
DID = "did:plc:ab2cd3ef4gh5ij6kl7mn2opq"
AT_US = 1_700_000_000_123_999
TIME = "2023-11-14T22:13:20.123Z"
OPS = [
    RepoOp("create", "a.b.c/1", NEW, None),
    RepoOp("update", "a.b.c/2", NEW, OLD),
    RepoOp("delete", "a.b.c/3", None, OLD),
]


def commit_frame(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "seq": 7,
        "at_us": AT_US,
        "did": DID,
        "commit": COMMIT,
        "rev": "3ke6kg42cm227",
        "since": "3ke6kg42cm226",
        "blocks": b"car",
        "ops": OPS,
        "prev_data": DATA,
    }
    return encode_commit_frame(**{**fields, **changes})


def parts(frame: bytes) -> tuple[Any, Any]:
    header, end = cbor.decode_prefix(frame)
    return header, cbor.decode(frame[end:])


def test_a_commit_has_exactly_the_fields_of_the_lexicon() -> None:
    header, payload = parts(commit_frame())
    assert header == {"op": 1, "t": "#commit"}
    assert payload == {
        "seq": 7,
        "time": TIME,
        "repo": DID,
        "commit": COMMIT,
        "rev": "3ke6kg42cm227",
        "since": "3ke6kg42cm226",
        "blocks": b"car",
        "ops": [
            {"action": "create", "path": "a.b.c/1", "cid": NEW},
            {"action": "update", "path": "a.b.c/2", "cid": NEW, "prev": OLD},
            {"action": "delete", "path": "a.b.c/3", "cid": None, "prev": OLD},
        ],
        "prevData": DATA,
        "blobs": [],
        "tooBig": False,
        "rebase": False,
    }


def test_the_first_commit_says_since_null_and_no_prev_data() -> None:
    _header, payload = parts(commit_frame(since=None, prev_data=None))
    assert payload["since"] is None
    assert "prevData" not in payload


@pytest.mark.parametrize(
    ("frame", "kind", "payload"),
    [
        (
            encode_sync_frame(seq=1, at_us=AT_US, did=DID, rev="r", blocks=b"b"),
            "#sync",
            {"seq": 1, "time": TIME, "did": DID, "rev": "r", "blocks": b"b"},
        ),
        (
            encode_identity_frame(seq=2, at_us=AT_US, did=DID, handle="a.b"),
            "#identity",
            {"seq": 2, "time": TIME, "did": DID, "handle": "a.b"},
        ),
        (
            encode_identity_frame(seq=2, at_us=AT_US, did=DID),
            "#identity",
            {"seq": 2, "time": TIME, "did": DID},
        ),
        (
            encode_account_frame(seq=3, at_us=AT_US, did=DID, active=True),
            "#account",
            {"seq": 3, "time": TIME, "did": DID, "active": True},
        ),
        (
            encode_account_frame(seq=3, at_us=AT_US, did=DID, active=False, status="deleted"),
            "#account",
            {"seq": 3, "time": TIME, "did": DID, "active": False, "status": "deleted"},
        ),
        (encode_info_frame("OutdatedCursor"), "#info", {"name": "OutdatedCursor"}),
        (encode_info_frame("X", "why"), "#info", {"name": "X", "message": "why"}),
    ],
)
def test_other_messages(frame: bytes, kind: str, payload: dict[str, Any]) -> None:
    assert parts(frame) == ({"op": 1, "t": kind}, payload)
    decoded = decode_frame(frame)
    assert (decoded.op, decoded.type, decoded.payload) == (1, kind, payload)


def test_an_error_has_no_type() -> None:
    """Spec: SYNC-3."""
    assert parts(encode_error_frame("FutureCursor")) == ({"op": -1}, {"error": "FutureCursor"})
    decoded = decode_frame(encode_error_frame("ConsumerTooSlow", "why"))
    assert (decoded.op, decoded.type) == (-1, "")
    assert decoded.payload == {"error": "ConsumerTooSlow", "message": "why"}


def test_an_inactive_account_must_say_why() -> None:
    with pytest.raises(FrameError):
        encode_account_frame(seq=1, at_us=AT_US, did=DID, active=False)


def test_limits_of_commit_and_sync() -> None:
    """Spec: REPO-80, SYNC-5."""
    ops = [RepoOp("create", f"a.b.c/{n}", NEW, None) for n in range(MAX_COMMIT_OPS)]
    frame = commit_frame(ops=ops, blocks=bytes(MAX_COMMIT_CAR_BYTES))
    assert len(decode_frame(frame).payload["ops"]) == MAX_COMMIT_OPS  # type: ignore[arg-type]
    with pytest.raises(FrameError):
        commit_frame(ops=[*ops, OPS[0]])
    with pytest.raises(FrameError):
        commit_frame(blocks=bytes(MAX_COMMIT_CAR_BYTES + 1))
    encode_sync_frame(seq=1, at_us=0, did=DID, rev="r", blocks=bytes(MAX_SYNC_CAR_BYTES))
    with pytest.raises(FrameError):
        encode_sync_frame(seq=1, at_us=0, did=DID, rev="r", blocks=bytes(MAX_SYNC_CAR_BYTES + 1))
    with pytest.raises(FrameError):
        encode_info_frame("x", "y" * MAX_FRAME_BYTES)
    with pytest.raises(FrameError):
        decode_frame(bytes(MAX_FRAME_BYTES + 1))


def test_a_public_client_library_reads_every_message() -> None:
    def read(frame: bytes) -> Any:
        message = firehose_models.Frame.from_bytes(frame)
        assert isinstance(message, firehose_models.MessageFrame)
        return parse_subscribe_repos_message(message)

    commit = read(commit_frame())
    assert isinstance(commit, models.ComAtprotoSyncSubscribeRepos.Commit)
    assert [op.action for op in commit.ops] == ["create", "update", "delete"]
    sync = read(encode_sync_frame(seq=1, at_us=AT_US, did=DID, rev="3ke6kg42cm227", blocks=b"b"))
    assert isinstance(sync, models.ComAtprotoSyncSubscribeRepos.Sync)
    account = read(encode_account_frame(seq=1, at_us=AT_US, did=DID, active=True))
    assert account.active
    error = firehose_models.Frame.from_bytes(encode_error_frame("FutureCursor", "ahead"))
    assert isinstance(error, firehose_models.ErrorFrame)
    assert error.body.error == "FutureCursor"


@pytest.mark.parametrize(
    "parts_",
    [
        ({"op": 1}, {}),
        ({"op": 1, "t": ""}, {}),
        ({"op": -1, "t": "#commit"}, {}),
        ({"op": "1", "t": "#commit"}, {}),
        ({"t": "#commit"}, {}),
        ({"op": 1, "t": 5}, {}),
        ([], {}),
        ({"op": 1, "t": "#commit"}, []),
        ({"op": 1, "t": "#commit"}, 1.5),
    ],
)
def test_frames_that_are_not_two_proper_maps_are_refused(parts_: tuple[Any, Any]) -> None:
    with pytest.raises(FrameError):
        decode_frame(b"".join(cbor2.dumps(part, canonical=True) for part in parts_))


def test_unknown_types_and_ops_are_passed_on() -> None:
    frame = cbor.encode({"op": 1, "t": "#new"}) + cbor.encode({"x": 1})
    assert decode_frame(frame).type == "#new"
    assert decode_frame(cbor.encode({"op": 2}) + b"\xa0").op == 2


@given(st.integers(0, 400), st.integers(1, 255))
def test_a_damaged_frame_is_refused_or_still_a_frame(at: int, mask: int) -> None:
    frame = bytearray(commit_frame())
    frame[at % len(frame)] ^= mask
    try:
        decoded = decode_frame(bytes(frame))
    except FrameError:
        return
    header: dict[str, cbor.Data] = {"op": decoded.op}
    if decoded.type:
        header["t"] = decoded.type
    assert bytes(frame).endswith(cbor.encode(decoded.payload))
    assert decoded.op != 1 or cbor.encode(header) + cbor.encode(decoded.payload) == bytes(frame)


def test_one_byte_more_or_less_is_refused() -> None:
    frame = commit_frame()
    for bad in (frame + b"\x00", frame[:-1], frame[1:], b""):
        with pytest.raises(FrameError):
            decode_frame(bad)
