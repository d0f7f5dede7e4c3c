"""A repo whose rev lies in the future is brought back, and only such a repo."""

import time
from pathlib import Path

import pytest

from pds.app import repair_repo_rev
from pds.errors import RequestError
from pds.protocol.car import read_car
from pds.protocol.commit import decode_commit, verify_commit
from pds.protocol.frames import decode_frame
from pds.protocol.keys import parse_did_key
from pds.protocol.tid import encode_tid
from pds.store.engine import Txn
from pds.store.events import get_event_page
from tests.scenarios.conftest import host_in
from tests.support_client import sign_up


def _put_rev(txn: Txn, rev: str) -> None:
    row = txn.read_one("SELECT repo_id FROM repo")
    assert row is not None
    txn.write("UPDATE repo SET rev = ? WHERE repo_id = ?", (rev, row[0]))


async def test_a_rev_of_the_future_is_brought_back(tmp_path: Path) -> None:
    """(REPO-3, REPO-6, SYNC-33)"""
    future = encode_tid(time.time_ns() // 1000 + 10**12, 1)
    async with host_in(tmp_path) as host:
        config = host.server.config
        alice = await sign_up(host.client, "alice.test")
        await alice.post("hello")
        state = host.plc.get_state(alice.did)
        assert state is not None
        key = parse_did_key(state.verification_methods["atproto"])
    with pytest.raises(RequestError, match="not in the future"):
        await repair_repo_rev(config, alice.did)
    async with host_in(tmp_path) as host:
        before = host.server.engine.last_seq
        await host.server.engine.transact("test", _put_rev, future)
    done = await repair_repo_rev(config, "alice.test")
    assert (done.did, done.old_rev) == (alice.did, future)
    assert done.new_rev < future
    async with host_in(tmp_path) as host:
        page = await host.server.engine.read("test", get_event_page, before, 10, 10**6)
        frame = decode_frame(page.events[-1].frame)
        assert (frame.type, frame.payload["rev"]) == ("#sync", done.new_rev)
        _, blocks = read_car(frame.payload["blocks"])
        assert verify_commit(decode_commit(next(iter(blocks.values()))), key)
        latest = await host.client.get("com.atproto.sync.getLatestCommit", did=alice.did)
        assert latest["rev"] == done.new_rev
        login = await host.client.post(
            "com.atproto.server.createSession", identifier="alice.test", password=alice.password
        )
        alice.client = host.client.with_token(login["accessJwt"])
        assert (await alice.post("again"))["commit"]["rev"] > done.new_rev


async def test_nobody_has_nothing_to_repair(tmp_path: Path) -> None:
    async with host_in(tmp_path) as host:
        config = host.server.config
    with pytest.raises(RequestError, match="Could not find repo"):
        await repair_repo_rev(config, "nobody.test")
