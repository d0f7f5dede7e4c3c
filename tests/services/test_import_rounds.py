"""Many differences in a row: blobs, and readers that ask for what is new, are never left behind.

Spec: (REPO-45, REPO-92, XRPC-82, XRPC-85, XRPC-86, SYNC-70)
"""

import random
from pathlib import Path
from typing import Any

import pytest

from pds.protocol.car import encode_car, read_car
from pds.protocol.cid import Cid
from tests.independent import check_export
from tests.services.life_host import life_host
from tests.services.test_repo_import import LIKE, POST, Moving, like, pieces, post, texts

CONTENTS = tuple(b"\x89PNG %d" % number for number in range(12))
PATHS = tuple(f"{POST}/{number}" for number in range(60)) + tuple(
    f"{LIKE}/{number}" for number in range(10)
)
ROUNDS = 12


def picture(number: int) -> dict[str, Any]:
    content = CONTENTS[number]
    return {
        "$type": "blob",
        "ref": Cid.of_raw(content),
        "mimeType": "image/png",
        "size": len(content),
    }


def record_at(path: str, dice: random.Random) -> dict[str, Any]:
    """A record: few are possible, so that many paths have the same, and come back to it."""
    if path.startswith(LIKE):
        return like(f"at://did:web:a.test/app.bsky.feed.post/{dice.randrange(3)}")
    first = dice.randrange(len(CONTENTS))
    return dice.choice(
        [
            post(dice.randrange(3)),
            post(0, embed=picture(first)),
            post(0, embed=[picture(first), picture((first + 1) % len(CONTENTS))]),
        ]
    )


class Readers:
    """One reader from each rev on: what it has, and what it is told since."""

    def __init__(self, moving: Moving) -> None:
        self.moving = moving
        self.known: dict[str, dict[Any, bytes]] = {}

    async def ask(self, expected: dict[str, str]) -> None:
        moving = self.moving
        rev, key = (await moving.live()).repo.head.rev, await moving.our_key()
        for since, blocks in list(self.known.items()):
            async with moving.host.exports.repo(
                moving.account.did, since=since, principal=moving.principal
            ) as chunks:
                roots, told = read_car(b"".join([chunk async for chunk in chunks]))
            whole = read_car(await moving.export())[1]
            car = encode_car(roots, [(cid, {**blocks, **told}[cid]) for cid in whole])
            found = check_export(car, did=moving.account.did, did_key=key)
            assert {path: str(Cid(cid)) for path, cid in found.items()} == expected
        self.known[rev] = dict(read_car(await moving.export())[1])


async def check_blobs(moving: Moving, uploaded: set[int], kept: set[int], used: set[int]) -> None:
    """Those in use stay, those that were in use go, those that never were wait for their time."""
    rows = await moving.host.rows_of(
        "SELECT cid, stored_at FROM blob WHERE aid = ?", moving.account.aid
    )
    found = {Cid(cid): stored_at is not None for cid, stored_at in rows}
    assert found == {Cid.of_raw(CONTENTS[number]): number in kept for number in uploaded}
    missing, _ = await moving.blobs.list_missing(moving.account.aid)
    assert {blob.cid for _, blob in missing} == {
        Cid.of_raw(CONTENTS[number]) for number in used - uploaded
    }


def used_by(records: dict[str, Any]) -> set[int]:
    used = set()
    for record in records.values():
        embed = record.get("embed", [])
        for blob in embed if isinstance(embed, list) else [embed]:
            used |= {n for n, content in enumerate(CONTENTS) if Cid.of_raw(content) == blob["ref"]}
    return used


@pytest.mark.parametrize("seed", range(3))
async def test_blobs_and_readers_follow_round_after_round(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    async with life_host(tmp_path) as host:
        moving = Moving(host, tmp_path, await host.open("alice", is_active=False))
        readers = Readers(moving)
        uploaded: set[int] = set()
        records: dict[str, Any] = {PATHS[0]: post(0)}
        old = moving.repo(records)
        await moving.take(old.car())
        await host.collect_garbage()
        for _ in range(ROUNDS):
            used = used_by(records)
            for number in dice.sample(range(len(CONTENTS)), 3):
                await moving.blobs.upload(
                    moving.account.aid, pieces(CONTENTS[number]), declared_type="image/png"
                )
                uploaded.add(number)
            await check_blobs(moving, uploaded, uploaded & used, used)
            records = change(records, dice)
            host.clock.advance(2)
            new = moving.repo(records)
            await moving.take(new.car(without=[cid for cid in old.blocks if cid != new.root]))
            old = new
            now_used = used_by(records)
            uploaded -= used - now_used
            await check_blobs(moving, uploaded, uploaded & now_used, now_used)
            await readers.ask(texts(new))
        assert moving.checks.count == 1


def change(records: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """Create, change, delete, move, and swap records; some things come back to what they were."""
    changed = dict(records)
    for path in dice.sample(PATHS, dice.randint(1, 25)):
        match dice.randrange(4):
            case 0:
                changed.pop(path, None)
            case 1:
                other = dice.choice(PATHS[:60])
                if path in changed and path.startswith(POST):
                    changed[other] = changed.pop(path)
            case _:
                changed[path] = record_at(path, dice)
    return changed or {PATHS[0]: post(0)}
