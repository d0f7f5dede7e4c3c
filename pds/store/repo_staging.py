"""A repo on its way in: a generation that is filled in small jobs and made live in one transaction.

Who stages holds a line of the journal (kind `import_repo`, subject: the account), so there is one
at a time on all nodes, and what a crash leaves behind can be found. Each job looks at the line
first: whoever took too long and was given up by another node stores nothing more. A line counts
as held while it was written lately; each job writes it.

Owns no table: generations, records, nodes and references are those of `repos`, `records`, `blobs`.

Spec: (REPO-92, REPO-93, ACC-52)
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pds.errors import RequestError
from pds.protocol.cid import Cid
from pds.protocol.repo import Head
from pds.protocol.syntax import Tid
from pds.store.accounts import Account, get_account_by_aid
from pds.store.engine import Txn
from pds.store.journal import (
    JournalRow,
    delete_journal,
    get_journal,
    get_journal_by_id,
    insert_journal,
    list_journal,
    update_journal,
)
from pds.store.repos import discard_repo, insert_repo, update_head

IMPORT_KIND: Final = "import_repo"
LEASE_US: Final = 120 * 1_000_000
"""For so long after its last job an import counts as under way."""


@dataclass(frozen=True, slots=True)
class Staging:
    """A generation that is being filled, under a line of the journal."""

    aid: int
    journal_id: int
    repo_id: int
    rev: Tid


class ImportUnderWay(RequestError):
    """Another import of the account has not ended."""

    def __init__(self) -> None:
        super().__init__(
            "InvalidRequest",
            "Another import of this repo is under way",
            headers={"Retry-After": "60"},
        )


class ImportLost(RequestError):
    """The import was given up meanwhile, or its account is no longer one that may import."""

    def __init__(self) -> None:
        super().__init__("InvalidRequest", "The account was changed while its repo was imported")


def begin_staging(
    txn: Txn, aid: int, head: Head, commit_block: bytes, *, now_us: int, is_alone: bool
) -> Staging:
    """Take the line of the account and insert an empty generation with this head.

    What an import that ended halfway has left becomes garbage. `is_alone` says that the caller
    knows of no other import of the account anywhere. Raises: ImportUnderWay.
    """
    held = get_journal(txn, IMPORT_KIND, str(aid))
    if held is not None:
        if not is_alone and not _is_lapsed(held, now_us):
            raise ImportUnderWay
        _give_up(txn, held, now_us)
    repo_id = insert_repo(txn, aid, head, commit_block, now_us=now_us)
    state = json.dumps({"repo_id": repo_id}).encode()
    journal_id = insert_journal(txn, kind=IMPORT_KIND, subject=str(aid), state=state, now_us=now_us)
    return Staging(aid, journal_id, repo_id, head.rev)


def check_staging(txn: Txn, staging: Staging, *, now_us: int) -> Account:
    """Return the account of an import that may go on, and renew its line.

    Raises: ImportLost.
    """
    row = get_journal_by_id(txn, staging.journal_id)
    account = get_account_by_aid(txn, staging.aid)
    if row is None or account is None or account.deactivated_at is None:
        raise ImportLost
    if account.takedown_ref is not None or account.suspended_at is not None:
        raise ImportLost
    update_journal(txn, row.journal_id, state=row.state, attempts=row.attempts, now_us=now_us)
    return account


def insert_blob_refs(
    txn: Txn,
    aid: int,
    repo_id: int,
    refs: Iterable[tuple[Cid, str]],
    *,
    rev: Tid,
    now_us: int,
) -> None:
    """Note which blobs records refer to, here or not; those that are here are kept (XRPC-86)."""
    rows = list(refs)
    txn.write_many(
        "INSERT INTO blob_ref (repo_id, cid, path, rev) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (repo_id, cid, path) DO UPDATE SET rev = excluded.rev",
        [(repo_id, bytes(cid), path, rev) for cid, path in rows],
    )
    txn.write_many(
        "UPDATE blob SET stored_at = ? WHERE aid = ? AND cid = ? AND stored_at IS NULL",
        [(now_us, aid, bytes(cid)) for cid in dict.fromkeys(cid for cid, _ in rows)],
    )


def end_staging(
    txn: Txn,
    staging: Staging,
    head: Head,
    commit_block: bytes,
    *,
    records: int,
    nodes: int,
    now_us: int,
) -> None:
    """Give a filled generation its counts, and the line back; the caller makes it live."""
    update_head(
        txn,
        staging.repo_id,
        head,
        commit_block,
        more_records=records,
        more_nodes=nodes,
        now_us=now_us,
    )
    delete_journal(txn, staging.journal_id)


def give_up_staging(txn: Txn, staging: Staging, *, now_us: int) -> None:
    """End an import that failed; nothing happens to one that has ended."""
    row = get_journal_by_id(txn, staging.journal_id)
    if row is not None:
        _give_up(txn, row, now_us)


def list_stagings(txn: Txn) -> list[JournalRow]:
    """Return the imports that have not ended."""
    return list_journal(txn, IMPORT_KIND)


def give_up_lapsed(txn: Txn, journal_id: int, *, now_us: int, is_alone: bool) -> bool:
    """End an import that nobody works on any more; return whether it was one."""
    row = get_journal_by_id(txn, journal_id)
    if row is None:
        return False
    txn.lock_accounts((int(row.subject),))
    row = get_journal_by_id(txn, journal_id)  # Its node may have renewed it until it was locked.
    if row is None or not (is_alone or _is_lapsed(row, now_us)):
        return False
    _give_up(txn, row, now_us)
    return True


def _is_lapsed(row: JournalRow, now_us: int) -> bool:
    return row.updated_at < now_us - LEASE_US


def _give_up(txn: Txn, row: JournalRow, now_us: int) -> None:
    discard_repo(txn, int(json.loads(row.state)["repo_id"]), now_us=now_us)
    delete_journal(txn, row.journal_id)
