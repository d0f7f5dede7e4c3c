"""The budget of one createRecord, line by line.

The steps and their budgets are those of the write path's design. Each figure is the best of several
rounds, in microseconds of CPU for one record in a repository of 2,000, and is to be read as a
ratio to its neighbours. The first lines are hot loops; in a server the same steps cost more.
"""

import hashlib
import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final, cast

from bench import parts
from pds.protocol import cbor, data
from pds.protocol.cid import Cid
from pds.protocol.frames import encode_commit_frame
from pds.protocol.jwt import sign_hs256, verify_hs256
from pds.protocol.keys import available_backends, make_signer
from pds.protocol.mst.tree import NodeCache
from pds.protocol.repo import Head, Write, empty_repo, finish_commit, plan_writes
from pds.protocol.syntax import Did, Tid
from pds.protocol.tid import encode_tid
from pds.services.lexicons import load_catalog
from pds.services.limits import RateSettings
from pds.services.principal import Principal, PrincipalKind
from pds.services.rate_limits import RateLimits
from pds.xrpc.listener import ServerRequest
from pds.xrpc.rate_hook import RateHook

POST: Final = "app.bsky.feed.post"
DID: Final = Did("did:plc:" + "a" * 24)
RECORDS: Final = 2_000
ROUNDS: Final = 5
BODY: Final = json.dumps(
    {
        "repo": DID,
        "collection": POST,
        "record": {
            "$type": POST,
            "text": "a post of ordinary length, as people write them every day",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "langs": ["en"],
        },
    }
).encode()


def best_us(work: Callable[[], Any], repeat: int = 500) -> float:
    """Return the CPU time of one call, the best of several rounds, in microseconds."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(repeat):
            work()
        best = min(best, (time.process_time() - began) / repeat)
    return best * 1e6


class Blocks(dict[Cid, bytes]):
    """Tree nodes in memory."""

    def get(self, cid: Cid) -> bytes:  # type: ignore[override]
        return self[cid]


def tree_lines(record: bytes) -> list[tuple[str, float, float]]:
    """Time plan (tree, proof), signature and packing in a repository of `RECORDS`."""
    signer = make_signer("k256", hashlib.sha256(b"bench").digest())
    blocks, cache = Blocks(), NodeCache()
    cid = Cid.of_data(record)
    clock = 1_700_000_000_000_000

    def tick() -> Tid:
        nonlocal clock
        clock += 10
        return encode_tid(clock, 5)

    plan = empty_repo(DID, tick())
    finished = finish_commit(plan, signer)
    blocks.update(plan.new_nodes)
    head = finished.head
    spent = [0.0, 0.0, 0.0]
    counted = 400
    for number in range(RECORDS + counted):
        write = Write("create", f"{POST}/{tick()}", cid, record)
        began = time.process_time()
        plan = plan_writes(head, [write], cache.over(blocks), did=DID, rev=tick())
        planned = time.process_time()
        finished = finish_commit(plan, signer)
        packed = time.process_time()
        encode_commit_frame(
            seq=clock,
            at_us=clock,
            did=DID,
            commit=finished.signed.cid,
            rev=plan.rev,
            since=plan.since,
            blocks=finished.car,
            ops=plan.ops,
            prev_data=plan.prev_data,
        )
        framed = time.process_time()
        if number >= RECORDS:
            spent[0] += planned - began
            spent[1] += packed - planned
            spent[2] += framed - packed
        blocks.update(plan.new_nodes)
        for gone in plan.removed_nodes:
            blocks.pop(gone, None)
        for node in plan.tree_nodes:
            cache.add(node)
        head = Head(DID, finished.signed.cid, plan.rev, plan.data)
    sign = best_us(lambda: signer.sign(record))
    tree, finish, frame = (part / counted * 1e6 for part in spent)
    return [
        ("MST: insert, encode, hash, covering proof", 49.0, tree),
        (f"sign ({', '.join(available_backends('k256'))})", 24.0, sign),
        ("commit and CAR", 10.0, finish - sign),
        ("frame", 5.0, frame),
    ]


def limits_us() -> float:
    """Return the CPU of counting one createRecord, without the headers of its answer."""
    endless = 10**12
    settings = RateSettings(requests=endless, writes_hour=endless, writes_day=endless)
    hook = RateHook(RateLimits(), settings)
    principal = Principal(PrincipalKind.SESSION, did=DID)
    nsid = "com.atproto.repo.createRecord"
    request = cast(
        "ServerRequest",
        SimpleNamespace(remote="203.0.113.7", headers={}, is_exempt=False, rate_count=None),
    )

    def count() -> None:
        hook.admit(request, nsid)
        hook.admit_account(request, principal)
        hook.charge(request, nsid, principal, {}, None)

    return best_us(count)


def lines() -> list[tuple[str, float, float]]:
    """Return (step, budget, measured), in microseconds."""
    catalog = load_catalog()
    record = data.from_json(json.loads(BODY)["record"])
    block = cbor.encode(record)
    key = b"k" * 32
    token = sign_hs256({"typ": "at+jwt"}, {"sub": DID, "exp": 2_000_000_000}, key)
    method = catalog.method("com.atproto.repo.createRecord")
    assert method is not None
    body = data.parse_json(BODY)
    return [
        ("limits: by address, by account, points of the write", 3.0, limits_us()),
        ("auth: access token", 5.0, best_us(lambda: verify_hs256(token, {"": key}))),
        ("lexicon: JSON in", 2.0, best_us(lambda: data.parse_json(BODY))),
        ("lexicon: input of the method", 2.0, best_us(lambda: method.check_input(body))),
        (
            "CBOR and CID: JSON to data",
            1.0,
            best_us(lambda: data.from_json(body["record"])),  # type: ignore[index,call-overload]
        ),
        (
            "lexicon: the record",
            2.0,
            best_us(lambda: catalog.validate_record(POST, "3jzfcijpj2z2a", record)),
        ),
        ("CBOR and CID: encode, hash", 2.0, best_us(lambda: Cid.of_data(cbor.encode(record)))),
        ("two TIDs", 2.0, best_us(lambda: (encode_tid(17 << 46, 5), encode_tid(17 << 46, 6)))),
        *tree_lines(block),
    ]


def run(say: Callable[[str], None]) -> None:
    """Print every line; `rest` is what the server spends beyond the sum of the steps."""
    say(f"{'step of one createRecord':<58}{'budget':>8}{'now':>8}  us CPU")
    found = [
        ("HTTP: an empty POST", 35.0, parts.http_us()),
        *lines(),
        ("SQLite: a record, four nodes, head, event; 16 to a commit", 105.0, parts.sqlite_us()),
    ]
    total = sum(now for _name, _budget, now in found)
    whole = parts.whole_us()
    found.append(("rest: hand-over, waking up, caches gone cold", 17.0, whole - total))
    for name, budget, now in found:
        say(f"{name:<58}{budget:>8.0f}{now:>8.1f}")
    wanted = sum(budget for _name, budget, _now in found)
    say(f"{'the whole, in a server with 16 writers':<58}{wanted:>8.0f}{whole:>8.1f}")
