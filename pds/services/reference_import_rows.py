"""The rows of an account of a reference PDS beside its repo and blobs, made in one transaction.

Passwords and app passwords are kept as the reference hashed them, until they are first used here
(ACC-30, ACC-35). Refresh tokens go on under the secret that signed them; access tokens do not.

Spec: (ACC-30, ACC-33, ACC-44, XRPC-25)
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from pds.errors import ConfigError
from pds.protocol.syntax import Did, Handle
from pds.services.email_addresses import normalize_email
from pds.services.principal import Scope
from pds.services.reference_import_repo import Commit, Takedown
from pds.store.accounts import (
    get_account_by_email,
    get_account_by_handle,
    insert_account,
    update_email,
    update_invites_disabled,
    update_key,
    update_repo,
    update_takedown,
)
from pds.store.app_passwords import insert_app_password
from pds.store.engine import Txn
from pds.store.keystore import Keystore
from pds.store.moderation import put_record_takedown
from pds.store.preferences import Preference, replace_preferences
from pds.store.reference_reader import (
    ReferenceAccount,
    ReferenceAppPassword,
    ReferenceRefreshToken,
)
from pds.store.sessions import Session, insert_session
from pds.store.takeover import Incoming, end_incoming

REFRESH_LIFETIME_US: Final = 90 * 86_400 * 1_000_000
"""Of the reference's refresh tokens: it does not note when they were made."""
DELETION_GRACE_US: Final = 30 * 86_400 * 1_000_000
"""The reference notes when a deactivated account is to be deleted, and never does it; here it is
done (ACC-22). So nobody is deleted sooner than this after the switch."""
NO_REF: Final = "taken down by the server that was here before"


class AccountTaken(ConfigError):
    """Something that the account claims belongs to another one here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRest:
    """Everything of an account but its repo and blobs."""

    account: ReferenceAccount
    did: Did
    handle: Handle | None
    secret: bytes
    entropy: bytes
    app_passwords: Sequence[ReferenceAppPassword]
    tokens: Sequence[ReferenceRefreshToken]
    preferences: Sequence[Preference]
    takedowns: Sequence[Takedown]
    commit: Commit
    records: int
    nodes: int


def finish_account(
    txn: Txn, keystore: Keystore, incoming: Incoming, rows: AccountRest, now_us: int
) -> int:
    """Make the account with all that belongs to it; return how many tokens go on.

    Raises: AccountTaken.
    """
    _check_free(txn, rows)
    aid = _insert_account(txn, incoming, rows, now_us)
    key_id, _ = keystore.create_signing_key(
        txn, aid, curve="k256", secret=rows.secret, entropy=rows.entropy, now_us=now_us
    )
    update_key(txn, aid, key_id)
    end_incoming(
        txn,
        incoming,
        rows.commit.head,
        rows.commit.block,
        records=rows.records,
        nodes=rows.nodes,
        now_us=now_us,
    )
    update_repo(txn, aid, incoming.repo_id)
    ids = {
        one.name: (_insert_app_password(txn, aid, one), one.privileged)
        for one in rows.app_passwords
    }
    replace_preferences(txn, aid, rows.preferences)
    for hidden in rows.takedowns:
        put_record_takedown(
            txn,
            aid,
            hidden.path,
            cid=hidden.cid,
            takedown_ref=hidden.takedown_ref or NO_REF,
            now_us=hidden.at,
        )
    sessions = list(_sessions(aid, rows.tokens, ids, now_us))
    for session in sessions:
        insert_session(txn, session)
    txn.announce(aid)
    return len(sessions)


def _check_free(txn: Txn, rows: AccountRest) -> None:
    if rows.handle is not None and get_account_by_handle(txn, rows.handle) is not None:
        raise AccountTaken(f"the handle {rows.handle} belongs to another account here")
    email = rows.account.email
    if email is not None and get_account_by_email(txn, normalize_email(email)) is not None:
        raise AccountTaken("its e-mail address belongs to another account here")


def delete_after(account: ReferenceAccount, now_us: int) -> int | None:
    """Return when a deactivated account is to be deleted here."""
    if account.delete_after is None:
        return None
    return max(account.delete_after, now_us + DELETION_GRACE_US)


def _insert_account(txn: Txn, incoming: Incoming, rows: AccountRest, now_us: int) -> int:
    old = rows.account
    email = None if old.email is None else normalize_email(old.email)
    aid = insert_account(
        txn,
        aid=incoming.aid,
        did=rows.did,
        handle=rows.handle,
        email=email,
        password_hash=old.password_hash,
        now_us=old.created_at,
        deactivated_at=old.deactivated_at,
        delete_after=delete_after(old, now_us),
    )
    update_email(txn, aid, email, confirmed_at=old.email_confirmed_at)
    if old.takedown_ref is not None:
        update_takedown(txn, aid, old.takedown_ref or NO_REF)
    if old.invites_disabled:
        update_invites_disabled(txn, aid, is_disabled=True)
    return aid


def _insert_app_password(txn: Txn, aid: int, one: ReferenceAppPassword) -> int:
    return insert_app_password(
        txn,
        aid=aid,
        name=one.name,
        hash=one.hash.encode(),
        privileged=one.privileged,
        now_us=one.created_at,
    )


def _sessions(
    aid: int,
    tokens: Sequence[ReferenceRefreshToken],
    app_passwords: Mapping[str, tuple[int, bool]],
    now_us: int,
) -> Iterator[Session]:
    """Yield the rows of refresh tokens that still live; those of one login share a session.

    The tokens themselves are signed with the secret that is the same here (XRPC-25). One whose app
    password is gone is not taken over.
    """
    successors = {token.next_id: token.token_id for token in tokens if token.next_id is not None}
    for token in tokens:
        if token.expires_at <= now_us:
            continue
        scope, app_password_id = Scope.ACCESS, None
        if token.app_password is not None:
            if token.app_password not in app_passwords:
                continue
            app_password_id, privileged = app_passwords[token.app_password]
            scope = Scope.APP_PASS_PRIVILEGED if privileged else Scope.APP_PASS
        yield Session(
            token_id=token.token_id,
            session_id=_session_id(token.token_id, successors),
            aid=aid,
            scope=scope,
            app_password_id=app_password_id,
            next_token_id=token.next_id,
            created_at=max(0, token.expires_at - REFRESH_LIFETIME_US),
            expires_at=token.expires_at,
        )


def _session_id(token_id: str, successors: Mapping[str, str]) -> str:
    """Return the name of a session, made of the oldest token that is known of it."""
    seen = {token_id}
    while (earlier := successors.get(token_id)) is not None and earlier not in seen:
        token_id = earlier
        seen.add(token_id)
    digest = sha256(b"session of " + token_id.encode()).digest()
    return base64.urlsafe_b64encode(digest[:16]).decode().rstrip("=")
