"""The strict relay model: what it lets pass, what it drops, and that it notices every breach.

Spec: SYNC-2, SYNC-10, SYNC-11, SYNC-30, SYNC-32, SYNC-33, SYNC-34, SYNC-35, SYNC-51, REPO-6,
REPO-63, REPO-66, REPO-67, REPO-70
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from pds.protocol import cbor
from pds.protocol.car import encode_car, read_car
from pds.protocol.cid import Cid
from pds.protocol.frames import (
    decode_frame,
    encode_account_frame,
    encode_error_frame,
    encode_identity_frame,
    encode_info_frame,
    encode_sync_frame,
)
from pds.protocol.keys import make_signer
from pds.protocol.mst.node import decode_node
from pds.protocol.repo import Head, Write, empty_repo, finish_commit, plan_writes
from pds.protocol.syntax import Did
from pds.protocol.tid import encode_tid
from tests.fakes.clock import NOON_US
from tests.fakes.relay import Relay, Verdict
from tests.independent import Refused
from tests.protocol.mst.reference import Nodes
from tests.protocol.test_repo import frame as commit_frame

DID = Did("did:plc:abcdefghijklmnopqrstuvwx")
HOST = "pds.example"
SIGNER, OTHER = (make_signer("k256", bytes(31) + bytes([n])) for n in (7, 9))
NOON_S = NOON_US / 1e6


class World:
    """A host that does everything right unless told otherwise, before a relay."""

    def __init__(self, **options: Any) -> None:
        self.now_s = NOON_S
        self.seq = 0
        self.signer = SIGNER
        self.head: Head | None = None
        self.nodes = Nodes()  # type: ignore[no-untyped-call]
        self.handle = "alice.example"
        self.endpoint = f"https://{HOST}"
        self.status: Mapping[str, Any] = {"did": DID, "active": True}
        self.resolved = 0
        self.relay = Relay(
            hostname=HOST,
            resolve=self._resolve,
            ask_status=self._ask_status,
            now_s=lambda: self.now_s,
            **options,
        )

    async def _resolve(self, did: str) -> Mapping[str, Any]:
        self.resolved += 1
        if did != DID and not did.startswith("did:plc:more"):
            raise Refused("no such did")
        return {
            "id": did,
            "alsoKnownAs": [f"at://{self.handle}"],
            "verificationMethod": [
                {"id": f"{did}#atproto", "publicKeyMultibase": self.signer.public_key.multibase}
            ],
            "service": [{"id": "#atproto_pds", "serviceEndpoint": self.endpoint}],
        }

    async def _ask_status(self, _did: str) -> Mapping[str, Any]:
        return self.status

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    def identity(self, **changes: Any) -> bytes:
        fields = {"seq": self.next_seq(), "at_us": NOON_US, "did": DID, "handle": self.handle}
        return encode_identity_frame(**(fields | changes))  # type: ignore[arg-type]

    def account(self, **changes: Any) -> bytes:
        fields = {"seq": self.next_seq(), "at_us": NOON_US, "did": DID, "active": True}
        return encode_account_frame(**(fields | changes))  # type: ignore[arg-type]

    def commit(
        self,
        *writes: Write,
        ahead_s: float = 0,
        change: Callable[[dict[str, Any]], None] | None = None,
        **changes: Any,
    ) -> bytes:
        """Commit and return the frame; `change` edits the payload that is sent."""
        rev = encode_tid(NOON_US + self.seq + 1 + round(ahead_s * 1e6), 1)
        plan = (
            empty_repo(DID, rev)
            if self.head is None
            else plan_writes(self.head, writes, self.nodes, did=DID, rev=rev)
        )
        plan = plan._replace(**changes)
        finished = finish_commit(plan, self.signer)
        for cid, block in plan.new_nodes.items():
            self.nodes[cid] = decode_node(cid, block)
        self.head = finished.head
        frame = commit_frame(finished, seq=self.next_seq(), at_us=NOON_US)
        return frame if change is None else edited(frame, change)

    def sync(self, **changes: Any) -> bytes:
        assert self.head is not None
        finished = finish_commit(
            empty_repo(DID, self.head.rev)._replace(data=self.head.data), self.signer
        )
        fields = {
            "seq": self.next_seq(),
            "at_us": NOON_US,
            "did": DID,
            "rev": self.head.rev,
            "blocks": encode_car(
                [finished.signed.cid], [(finished.signed.cid, finished.signed.block)]
            ),
        }
        return encode_sync_frame(**(fields | changes))  # type: ignore[arg-type]

    async def open_account(self) -> None:
        """The events of a new account, in order (SYNC-40)."""
        for frame in (self.identity(), self.account(), self.commit(), self.sync()):
            await self.passes(frame)

    async def passes(self, frame: bytes) -> None:
        before = len(self.relay.failures)
        verdict = await self.relay.take(frame)
        assert (verdict, self.relay.failures[before:]) == (Verdict.PASSED, [])

    async def fails(self, frame: bytes, why: str) -> None:
        assert await self.relay.take(frame) is Verdict.FAILED
        assert why in self.relay.failures[-1]


def edited(frame: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The frame with an edited payload."""
    payload: dict[str, Any] = decode_frame(frame).payload
    change(payload)
    _header, end = cbor.decode_prefix(frame)
    return frame[:end] + cbor.encode(payload)


def create(path: str, number: int = 0) -> Write:
    block = cbor.encode({"$type": "com.example.record", "n": number})
    return Write("create", path, Cid.of_data(block), block)


def path(number: int) -> str:
    return f"com.example.record/{number}"


@pytest.fixture
def world() -> World:
    return World()


# --- What passes ------------------------------------------------------------------------------


async def test_the_life_of_an_account_passes(world: World) -> None:
    await world.open_account()
    await world.passes(world.commit(*(create(path(n), n) for n in range(150))))
    for n in range(150, 200):
        world.now_s += 0.1
        await world.passes(world.commit(create(path(n), n)))
    update = create(path(3), 999)._replace(action="update")
    await world.passes(world.commit(update, Write("delete", path(4)), create(path(200))))
    await world.passes(world.account(active=False, status="deactivated"))
    await world.passes(world.account())
    await world.passes(world.identity())
    await world.passes(world.sync())
    await world.passes(world.commit(*(Write("delete", path(n)) for n in range(50, 200))))
    await world.passes(world.account(active=False, status="deleted"))
    assert world.relay.dropped == []


async def test_a_relay_that_comes_late_takes_the_first_commit_it_sees(world: World) -> None:
    world.commit()
    world.commit(create(path(1)))
    await world.passes(world.commit(create(path(2))))


async def test_an_outdated_cursor_is_only_information(world: World) -> None:
    await world.passes(encode_info_frame("OutdatedCursor"))
    assert world.relay.last_seq == 0


async def test_a_changed_key_is_found_after_identity(world: World) -> None:
    await world.open_account()
    world.signer = OTHER
    await world.passes(world.identity())
    await world.passes(world.commit(create(path(1))))


# --- Frames, numbers, quotas ------------------------------------------------------------------


async def test_an_error_is_a_failure(world: World) -> None:
    await world.fails(encode_error_frame("ConsumerTooSlow"), "ConsumerTooSlow")


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xa0", b"\xff", b"\xa0\xa0", b"\x80\x80", bytes(5_000_001)],
    ids=["empty", "one map", "no cbor", "no header", "lists", "large"],
)
async def test_what_is_no_frame_fails(world: World, frame: bytes) -> None:
    await world.fails(frame, "")


async def test_a_frame_that_is_not_canonical_fails(world: World) -> None:
    frame = world.account()
    await world.fails(frame + b"\xa0", "not two maps")
    # The same map with `seq` in two bytes.
    longer = frame.replace(b"\x63seq\x01", b"\x63seq\x18\x01")
    assert len(longer) == len(frame) + 1
    await world.fails(longer, "")


async def test_an_unknown_type_fails(world: World) -> None:
    frame = cbor.encode({"op": 1, "t": "#handle"}) + cbor.encode({"seq": 1, "did": DID})
    await world.fails(frame, "unknown message type")


async def test_numbers_that_do_not_increase_fail(world: World) -> None:
    await world.passes(world.account(seq=5))
    await world.fails(world.account(seq=5), "seq does not increase")
    await world.fails(world.account(seq=4), "seq does not increase")
    await world.fails(world.account(seq=0), "seq")
    await world.fails(world.account(seq=2**53), "seq")
    await world.passes(world.account(seq=100))


async def test_too_many_events_in_any_time_fail() -> None:
    world = World(limits=((1, 5), (3600, 10)))
    for _ in range(5):
        await world.passes(world.identity())
    await world.fails(world.identity(), "more than 5 events in 1 s")
    world.now_s += 2
    for _ in range(4):
        await world.passes(world.identity())
    world.now_s += 2
    await world.fails(world.identity(), "more than 10 events in 3600 s")


@pytest.mark.parametrize("time", ["", "2027-01-15", "2027-01-15T08:00:00", "2027-13-15T08:00:00Z"])
async def test_a_time_that_is_none_fails(world: World, time: str) -> None:
    frame = edited(world.account(), lambda payload: payload.update(time=time))
    await world.fails(frame, "time is no datetime")


# --- Accounts ---------------------------------------------------------------------------------


async def test_accounts_of_another_host_fail(world: World) -> None:
    world.endpoint = "https://elsewhere.example"
    await world.fails(world.account(), "another host")


async def test_an_account_that_does_not_resolve_fails(world: World) -> None:
    await world.fails(world.account(did="did:plc:unknown"), "no such did")
    await world.fails(world.account(did="nonsense"), "not a DID")


async def test_an_account_that_moved_here_is_found_by_asking_again(world: World) -> None:
    world.endpoint = "https://elsewhere.example"
    await world.fails(world.account(), "another host")
    world.endpoint = f"https://{HOST}"
    await world.passes(world.account())


async def test_accounts_over_the_limit_are_throttled() -> None:
    world = World(account_limit=2)
    for n in range(3):
        await world.relay.take(world.account(did=f"did:plc:more{n}"))
    assert world.relay.failures == []
    assert len(world.relay.dropped) == 1
    assert "host-throttled" in world.relay.dropped[0]


async def test_inactive_without_a_known_status_fails(world: World) -> None:
    def without(payload: dict[str, Any]) -> None:
        del payload["status"]

    frame = edited(world.account(active=False, status="deactivated"), without)
    await world.fails(frame, "inactive without a status")
    await world.fails(world.account(active=False, status="tired"), "unknown status")


async def test_a_handle_that_the_document_does_not_name_fails(world: World) -> None:
    await world.fails(world.identity(handle="mallory.example"), "not the handle")
    await world.passes(world.identity(handle="handle.invalid"))
    await world.passes(world.identity(handle=None))


async def test_content_of_an_inactive_account_fails_unless_the_host_says_active(
    world: World,
) -> None:
    await world.open_account()
    await world.passes(world.account(active=False, status="deactivated"))
    world.status = {"did": DID, "active": False, "status": "deactivated"}
    await world.fails(world.commit(create(path(1))), "not active")
    await world.fails(world.sync(), "not active")
    world.status = {"did": DID, "active": True}
    await world.passes(world.sync())
    world.relay.repos[DID].upstream_active = False
    world.status = {"error": "RepoNotFound"}
    await world.fails(world.sync(), "getRepoStatus")


# --- Commits ----------------------------------------------------------------------------------


def _drop_block(kind: str) -> Callable[[dict[str, Any]], None]:
    """Leave one kind of block out of a commit of one create."""

    def change(payload: dict[str, Any]) -> None:
        roots, blocks = read_car(payload["blocks"])
        record = payload["ops"][0]["cid"]
        nodes = [cid for cid in blocks if cid not in {record, roots[0]}]
        gone = {"commit": roots[0], "record": record, "node": nodes[-1]}[kind]
        left = [(cid, block) for cid, block in blocks.items() if cid != gone]
        payload["blocks"] = encode_car(roots, left)

    return change


def _set(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda payload: payload.update(values)


def _remove(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda payload: payload.pop(name)


BREACHES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("tooBig", _set(tooBig=True), "tooBig"),
    ("rebase", _set(rebase=True), "rebase"),
    ("no rebase", _remove("rebase"), "fields"),
    ("no blobs", _remove("blobs"), "fields"),
    ("no since", _remove("since"), "fields"),
    ("unknown field", _set(extra=1), "fields"),
    ("blobs", _set(blobs=[Cid.of_raw(b"")]), "blobs"),
    ("no blocks", _set(blocks=b""), "size of blocks"),
    ("blocks no CAR", _set(blocks=b"\xff\xff"), "no CAR"),
    ("other rev", _set(rev=encode_tid(NOON_US + 999, 1)), "rev is not that of the commit"),
    ("rev no TID", _set(rev="zzz"), "rev"),
    ("other commit", _set(commit=Cid.of_data(b"x")), "root of blocks"),
    ("other since", _set(since="3ke6kg42cm227"), "since is not"),
    ("since null", _set(since=None), "since is not"),
    ("other prevData", _set(prevData=Cid.of_data(b"x")), "prevData is not"),
    ("no prevData", _remove("prevData"), "prevData is not"),
    ("no ops", _set(ops=[]), "cannot be inverted"),
    ("without commit block", _drop_block("commit"), "commit block is missing"),
    ("without record", _drop_block("record"), "record of an op is missing"),
    ("without a proof node", _drop_block("node"), ""),
    ("op twice", lambda p: p["ops"].append(p["ops"][0]), "twice"),
    ("op with prev null", lambda p: p["ops"][0].update(prev=None), "form of a create"),
    ("op without cid", lambda p: p["ops"][0].pop("cid"), ""),
    ("op on another path", lambda p: p["ops"][0].update(path="com.example.record/zz"), "tree"),
    ("unknown action", lambda p: p["ops"][0].update(action="move"), "unknown action"),
    (
        "update that changes nothing",
        lambda p: p["ops"][0].update(action="update", prev=p["ops"][0]["cid"]),
        "changes nothing",
    ),
    ("delete with a cid", lambda p: p["ops"][0].update(action="delete", prev=Cid.of_data(b"")), ""),
]


@pytest.mark.parametrize(("name", "change", "why"), BREACHES, ids=[b[0] for b in BREACHES])
async def test_every_breach_of_a_commit_fails(
    world: World, name: str, change: Callable[[dict[str, Any]], None], why: str
) -> None:
    await world.open_account()
    await world.passes(world.commit(*(create(path(n), n) for n in range(60))))
    before = replace(world.relay.repos[DID])
    await world.fails(world.commit(create(path(77)), change=change), why)
    assert world.relay.repos[DID] == before


async def test_a_commit_signed_with_another_key_fails(world: World) -> None:
    await world.open_account()
    world.signer = OTHER
    frame = world.commit(create(path(1)))
    world.signer = SIGNER
    await world.fails(frame, "signature")


async def test_a_key_changed_without_a_word_is_found_by_asking_again(world: World) -> None:
    await world.open_account()
    asked = world.resolved
    world.signer = OTHER
    await world.passes(world.commit(create(path(1))))
    assert world.resolved == asked + 1


async def test_a_rev_in_the_future_fails_and_a_little_ahead_passes(world: World) -> None:
    await world.open_account()
    await world.passes(world.commit(create(path(1)), ahead_s=200))
    await world.fails(world.commit(create(path(2)), ahead_s=400), "future")


async def test_a_rev_that_goes_back_fails(world: World) -> None:
    await world.open_account()
    await world.passes(world.commit(create(path(1)), ahead_s=100))
    await world.fails(world.commit(create(path(2))), "rev does not increase")


async def test_a_lost_commit_is_noticed_at_the_next(world: World) -> None:
    await world.open_account()
    world.commit(create(path(1)))
    await world.fails(world.commit(create(path(2))), "since is not the previous rev")


async def test_a_sync_that_goes_back_or_lies_fails(world: World) -> None:
    await world.open_account()
    old = world.head
    await world.passes(world.commit(create(path(1))))
    new, world.head = world.head, old
    await world.fails(world.sync(), "goes back")
    assert new is not None
    world.head = new._replace(data=Cid.of_data(b"other tree"))
    await world.fails(world.sync(), "one rev with two trees")
    world.head = new
    await world.fails(world.sync(rev=encode_tid(NOON_US + 10**6, 1)), "rev is not that")
    await world.passes(world.sync())
