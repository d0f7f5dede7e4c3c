"""Rows of accounts that are taken over from another host: filled in small jobs, shown at the end.

While an account is on its way, a line of the journal (kind `takeover`, subject: its DID) keeps its
number and the generation that is being filled; there is no account row, so nobody sees anything of
it. One transaction makes the account and deletes the line. What was killed before that begins anew
under the same number, so that the blobs it had copied are still its own.

Owns no table but the fact `takeover`: which host is taken over, and whether that is complete.

Spec: (ACC-30, ACC-52)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pds.errors import ConfigError
from pds.protocol.cid import Cid
from pds.protocol.repo import Head
from pds.protocol.syntax import Tid
from pds.store.blobs import Blob
from pds.store.engine import Txn
from pds.store.journal import delete_journal, get_journal, insert_journal, update_journal
from pds.store.repos import discard_repo, insert_repo, update_head

TAKEOVER_KIND: Final = "takeover"
TAKEOVER_FACT: Final = "takeover"


@dataclass(frozen=True, slots=True)
class Incoming:
    """An account on its way: its number, its line of the journal, its generation."""

    aid: int
    journal_id: int
    repo_id: int


def begin_incoming(txn: Txn, did: str, head: Head, commit_block: bytes, *, now_us: int) -> Incoming:
    """Insert an empty generation for an account that is not here yet; an older one is dropped."""
    row = get_journal(txn, TAKEOVER_KIND, did)
    if row is None:
        aid = txn.next_id("account")
    else:
        held = json.loads(row.state)
        aid = int(held["aid"])
        discard_repo(txn, int(held["repo_id"]), now_us=now_us)
    repo_id = insert_repo(txn, aid, head, commit_block, now_us=now_us)
    state = json.dumps({"aid": aid, "repo_id": repo_id}).encode()
    if row is None:
        journal_id = insert_journal(
            txn, kind=TAKEOVER_KIND, subject=did, state=state, now_us=now_us
        )
        return Incoming(aid, journal_id, repo_id)
    update_journal(txn, row.journal_id, state=state, attempts=row.attempts + 1, now_us=now_us)
    return Incoming(aid, row.journal_id, repo_id)


def end_incoming(
    txn: Txn,
    incoming: Incoming,
    head: Head,
    commit_block: bytes,
    *,
    records: int,
    nodes: int,
    now_us: int,
) -> None:
    """Give the filled generation its counts and close the line; the account row is the caller's."""
    update_head(
        txn,
        incoming.repo_id,
        head,
        commit_block,
        more_records=records,
        more_nodes=nodes,
        now_us=now_us,
    )
    delete_journal(txn, incoming.journal_id)


def insert_nodes_as_they_were(
    txn: Txn, repo_id: int, nodes: Sequence[tuple[Cid, Tid, bytes]]
) -> None:
    """Store tree nodes, each with the rev at which the other host had stored it."""
    txn.write_many(
        "INSERT INTO node (repo_id, cid, rev, bytes) VALUES (?, ?, ?, ?)",
        [(repo_id, bytes(cid), rev, block) for cid, rev, block in nodes],
    )


def insert_records_as_they_were(
    txn: Txn, repo_id: int, records: Sequence[tuple[str, Cid, Tid, bytes]]
) -> None:
    """Store records `(path, cid, rev, block)`, each with the rev of the commit that wrote it."""
    txn.write_many(
        "INSERT INTO record (repo_id, path, cid, rev, bytes) VALUES (?, ?, ?, ?, ?)",
        [(repo_id, path, bytes(cid), rev, block) for path, cid, rev, block in records],
    )


def insert_blob_refs_as_they_were(
    txn: Txn, repo_id: int, refs: Sequence[tuple[Cid, str, Tid]]
) -> None:
    """Note which records `(cid, path, rev)` refer to which blobs, here or not (XRPC-86)."""
    txn.write_many(
        "INSERT INTO blob_ref (repo_id, cid, path, rev) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (repo_id, cid, path) DO NOTHING",
        [(repo_id, bytes(cid), path, rev) for cid, path, rev in refs],
    )


def put_blobs(txn: Txn, aid: int, blobs: Sequence[Blob]) -> None:
    """Note blobs whose bytes are stored, in the state that they had."""
    txn.write_many(
        "INSERT INTO blob (aid, cid, mime_type, size, created_at, stored_at, takedown_ref)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (aid, cid) DO UPDATE"
        " SET mime_type = excluded.mime_type, size = excluded.size,"
        " created_at = excluded.created_at, stored_at = excluded.stored_at,"
        " takedown_ref = excluded.takedown_ref",
        [
            (
                aid,
                bytes(blob.cid),
                blob.mime_type,
                blob.size,
                blob.created_at,
                blob.stored_at,
                blob.takedown_ref,
            )
            for blob in blobs
        ],
    )


def is_blob_referenced(txn: Txn, repo_id: int, cid: Cid) -> bool:
    """Whether a record of the generation refers to the blob."""
    row = txn.read_one(
        "SELECT 1 FROM blob_ref WHERE repo_id = ? AND cid = ? LIMIT 1", (repo_id, bytes(cid))
    )
    return row is not None


def count_rows(txn: Txn, repo_id: int) -> tuple[int, int]:
    """Return how many records and nodes of a generation there are, counted one by one."""
    records = txn.read("SELECT count(*) FROM record WHERE repo_id = ?", (repo_id,))[0][0]
    nodes = txn.read("SELECT count(*) FROM node WHERE repo_id = ?", (repo_id,))[0][0]
    return int(records), int(nodes)


def count_others(txn: Txn) -> int:
    """Return how many accounts and events there are: none on a host that takes over another."""
    accounts = txn.read("SELECT count(*) FROM account")[0][0]
    events = txn.read("SELECT count(*) FROM event")[0][0]
    return int(accounts) + int(events)


def get_takeover(txn: Txn) -> dict[str, Any] | None:
    """Return what is noted of the host that is taken over."""
    row = txn.read_one("SELECT value FROM fact WHERE name = ?", (TAKEOVER_FACT,))
    if row is None:
        return None
    noted: dict[str, Any] = json.loads(row[0])
    return noted


def check_takeover(txn: Txn) -> None:
    """Refuse to serve a host of which a part is still missing: relays would believe it gone.

    Raises: ConfigError.
    """
    noted = get_takeover(txn)
    if noted is not None and "completed_at" not in noted:
        raise ConfigError(
            f"this host has not taken over all of {noted['service_did']} yet: run"
            " `pds import-reference` again, until it says that it is complete"
        )


def put_takeover(txn: Txn, noted: Mapping[str, Any]) -> None:
    """Note which host is taken over, and how far that is."""
    txn.write(
        "INSERT INTO fact (name, value) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (TAKEOVER_FACT, json.dumps(dict(noted), sort_keys=True).encode()),
    )
