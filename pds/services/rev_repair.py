"""Brings a repo back whose rev lies in the future: the one exception to "revs never go backwards".

A rev is a time, and relays drop commits that are minutes ahead of their clocks (REPO-6), so an
account whose rev was made by a wrong clock is not seen by anybody until that time comes. The head
is signed again under a rev of now, and a `#sync` event tells readers to start over from it.

Records and nodes keep the revs they have: an export since some rev may carry too much, never too
little.
"""

from dataclasses import dataclass

from pds.errors import RequestError
from pds.protocol.commit import sign_commit
from pds.protocol.repo import Head
from pds.protocol.syntax import Did, Tid
from pds.protocol.tid import decode_tid, next_tid
from pds.services.repo_txn import emit_sync
from pds.store.engine import Txn
from pds.store.keystore import Keystore
from pds.store.repos import find_account_repo, update_head


@dataclass(frozen=True, slots=True)
class RevRepair:
    """What was done to one repo."""

    did: Did
    old_rev: Tid
    new_rev: Tid


def repair_rev(
    txn: Txn, keystore: Keystore, did_or_handle: str, *, now_us: int, clock_id: int
) -> RevRepair:
    """Sign the head of a repo again under a rev of now, and announce it with `#sync`.

    Raises: RequestError when there is no such repo, or its rev is not in the future: then there is
    nothing to repair, and a lower rev would cut readers off. Spec: (REPO-3, REPO-6, SYNC-33)
    """
    account = find_account_repo(txn, did_or_handle)
    if account is None or account.repo is None or account.key_id is None:
        raise RequestError("RepoNotFound", f"Could not find repo: {did_or_handle}")
    txn.lock_accounts((account.aid,))
    account = find_account_repo(txn, did_or_handle)  # Another node may have written meanwhile.
    if account is None or account.repo is None or account.key_id is None:
        raise RequestError("RepoNotFound", f"Could not find repo: {did_or_handle}")
    repo = account.repo
    old_us, _ = decode_tid(repo.head.rev)
    if old_us <= now_us:
        raise RequestError("InvalidRequest", f"The rev {repo.head.rev} is not in the future")
    rev = next_tid(None, now_us, clock_id)
    signer = keystore.signer(txn, account.key_id)
    signed = sign_commit(signer, did=account.did, data=repo.head.data, rev=rev)
    head = Head(account.did, signed.cid, rev, repo.head.data)
    update_head(txn, repo.repo_id, head, signed.block, more_records=0, more_nodes=0, now_us=now_us)
    emit_sync(txn, account.aid, account.did, signed.cid, signed.block, rev=rev)
    return RevRepair(account.did, repo.head.rev, rev)
