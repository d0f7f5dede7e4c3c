"""Ten million entries, in a tree that is right in everything but its size, are refused."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from pds.protocol import cbor
from pds.protocol.car import encode_car_block, encode_car_header
from pds.protocol.cid import Cid
from pds.protocol.commit import sign_commit
from pds.protocol.mst.node import encode_node, key_depth
from pds.protocol.tid import encode_tid
from tests.soak.test_import import CREATED, MAX_REPO_MB, POST, Watch, newcomer_at
from tests.support_live import live_server_in
from tests.support_move import Newcomer, import_car, refusal

ENTRIES = int(os.environ.get("PDS_SOAK_BOMB_ENTRIES", "10000000"))
PIECE_BYTES = 1 << 20


class Level:
    """The node of one depth that is being filled: it stands right of all that are finished."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.children: list[Cid | None] = []
        self.rightmost: Cid | None = None

    def finish(self, value: Cid, emit: Callable[[Cid, bytes], None]) -> Cid | None:
        if not self.keys and self.rightmost is None:
            return None
        block = encode_node(self.keys, [value] * len(self.keys), [*self.children, self.rightmost])
        cid = Cid.of_data(block)
        emit(cid, block)
        self.keys, self.children, self.rightmost = [], [], None
        return cid


def write_tree(keys: Iterator[bytes], value: Cid, emit: Callable[[Cid, bytes], None]) -> Cid:
    """Write the nodes of a tree that has one record under many keys; return its root.

    Only the path to the last key is in memory.
    """
    levels = [Level() for _ in range(64)]
    top = 0
    for key in keys:
        depth = key_depth(key)
        for level in range(depth):
            if (finished := levels[level].finish(value, emit)) is not None:
                levels[level + 1].rightmost = finished
        here = levels[depth]
        here.children.append(here.rightmost)
        here.keys.append(key)
        here.rightmost = None
        top = max(top, depth)
    for level in range(top):
        if (finished := levels[level].finish(value, emit)) is not None:
            levels[level + 1].rightmost = finished
    root = levels[top].finish(value, emit)
    assert root is not None
    return root


def write_bomb(newcomer: Newcomer, target: Path, entries: int) -> bytes:
    """Write all blocks but the first; return the beginning of the CAR."""
    record = cbor.encode({"$type": POST, "text": "hello", "createdAt": CREATED})
    record_cid = Cid.of_data(record)
    keys = (f"{POST}/3k{number:011}".encode() for number in range(entries))
    with target.open("wb") as file:
        root = write_tree(
            keys, record_cid, lambda cid, block: file.write(encode_car_block(cid, block)) and None
        )
    rev = encode_tid(time.time_ns() // 1000 - 60_000_000, 1)
    signed = sign_commit(newcomer.signer, did=newcomer.did, data=root, rev=rev)
    return b"".join(
        (
            encode_car_header((signed.cid,)),
            encode_car_block(signed.cid, signed.block),
            encode_car_block(record_cid, record),
        )
    )


async def pieces(beginning: bytes, rest: Path) -> AsyncIterator[bytes]:
    yield beginning
    with rest.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


@pytest.mark.timeout(3600)
async def test_ten_million_entries_are_refused(tmp_path: Path) -> None:
    """A thousand of the same kind are taken, so it is the number that is refused."""
    async with (
        live_server_in(tmp_path / "server", PDS_MAX_REPO_IMPORT_SIZE=str(2 << 30)) as server,
        aiohttp.ClientSession() as http,
    ):
        assert server.process is not None
        newcomer, person = await newcomer_at(http, server, "bomb.test")
        blocks = tmp_path / "blocks"
        beginning = await asyncio.to_thread(write_bomb, newcomer, blocks, 1000)
        await import_car(person.client, pieces(beginning, blocks))
        before = await person.client.get("com.atproto.server.checkAccountStatus")
        assert before["indexedRecords"] == 1000

        beginning = await asyncio.to_thread(write_bomb, newcomer, blocks, ENTRIES)
        began = time.monotonic()
        async with Watch(server.process.pid) as watch:
            error = await refusal(import_car(person.client, pieces(beginning, blocks)))
        print(
            f"\n{ENTRIES} entries, {blocks.stat().st_size / 1e6:.0f} MB: {error.body} after"
            f" {time.monotonic() - began:.1f} s; CPU {watch.cpu_s:.1f} s,"
            f" {watch.server_cpu_s:.1f} s of it in the server; peak {watch.peak_mb:.0f} MB"
        )
        assert error.status == 400
        assert "larger than the limit" in error.body["message"]
        assert watch.peak_mb < MAX_REPO_MB
        assert await person.client.get("com.atproto.server.checkAccountStatus") == before
