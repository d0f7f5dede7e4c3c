"""Reads the databases of a stopped reference PDS (`@atproto/pds`), and never writes to them.

Its data folder holds `account.sqlite` (accounts, passwords, refresh tokens, invite codes),
`sequencer.sqlite` (the firehose) and, for each account, `actors/<2 hex>/<did>/` with `store.sqlite`
(repo blocks, index of records, blobs, preferences) and `key` (the 32 bytes of the signing key).

How the files are opened, and which are refused, stands in `reference_files`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from pds.errors import Corrupt
from pds.protocol.cid import Cid, InvalidCid, parse_cid
from pds.protocol.mst.tree import MissingBlock
from pds.store.reference_files import NotReference, open_file
from pds.store.sqlite import check_library

KEY_BYTES: Final = 32
PAGE_ROWS: Final = 500

_ACCOUNT: Final = (
    "SELECT x.did, x.handle, x.createdAt, x.takedownRef, x.deactivatedAt, x.deleteAfter,"
    " a.email, a.emailConfirmedAt, a.passwordScrypt, a.invitesDisabled"
    " FROM actor x LEFT JOIN account a ON a.did = x.did"
)


@dataclass(frozen=True, slots=True)
class ReferencePaths:
    """Where the files are."""

    account_db: Path
    sequencer_db: Path
    actors: Path

    @property
    def reserved_keys(self) -> Path:
        """The folder of keys that were handed out before their accounts exist."""
        return self.actors / "reserved_keys"


@dataclass(frozen=True, slots=True)
class ReferenceAccount:
    """An account; instants in unix microseconds."""

    did: str
    handle: str | None
    created_at: int
    takedown_ref: str | None
    deactivated_at: int | None
    delete_after: int | None
    email: str | None
    email_confirmed_at: int | None
    password_hash: str | None
    invites_disabled: bool


@dataclass(frozen=True, slots=True)
class ReferenceAppPassword:
    """An app password; `hash` is `salt:hash` of scrypt, the salt made of the DID."""

    name: str
    hash: str
    created_at: int
    privileged: bool


@dataclass(frozen=True, slots=True)
class ReferenceRefreshToken:
    """A refresh token by its id; `next_id` is its successor once it was used."""

    token_id: str
    expires_at: int
    app_password: str | None
    next_id: str | None


@dataclass(frozen=True, slots=True)
class ReferenceInvite:
    """An invite code with its uses `(did, used_at)`."""

    code: str
    use_count: int
    disabled: bool
    for_account: str
    created_by: str
    created_at: int
    uses: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class ReferenceEvent:
    """A firehose event; `content` is its payload without number and time, in CBOR."""

    seq: int
    did: str
    kind: str
    content: bytes
    at_us: int


@dataclass(frozen=True, slots=True)
class ReferenceRecord:
    """What the index of records says of one."""

    cid: str
    rev: str
    indexed_at: int
    takedown_ref: str | None


@dataclass(frozen=True, slots=True)
class ReferenceBlob:
    """A blob; `temp_key` names the file of one that no record has referred to."""

    cid: Cid
    mime_type: str
    size: int
    temp_key: str | None
    created_at: int
    takedown_ref: str | None


class ReferenceHost:
    """The databases of a whole host, and the way to those of its accounts."""

    def __init__(self, paths: ReferencePaths, scratch: Path) -> None:
        """Open them; copies of files that have a log go to the folder `scratch`.

        Raises: NotReference, SourceInUse, Corrupt, Unavailable.
        """
        check_library()
        if not paths.account_db.is_file():
            raise NotReference(f"{paths.account_db} is not there: is this the right folder?")
        if not paths.actors.is_dir():
            raise NotReference(
                f"{paths.actors} is not there: the repos of the accounts are missing"
            )
        self._paths = paths
        self._scratch = scratch
        self._accounts = open_file(paths.account_db, "account", scratch)
        try:
            self._events = open_file(paths.sequencer_db, "sequencer", scratch)
        except BaseException:
            self._accounts.close()
            raise

    def close(self) -> None:
        """Close the databases of the host."""
        self._events.close()
        self._accounts.close()

    def count_accounts(self) -> int:
        """Return how many accounts there are."""
        return int(self._accounts.execute("SELECT count(*) FROM actor")[0][0])

    def list_accounts(self) -> Iterator[ReferenceAccount]:
        """Yield all accounts in the order of their creation."""
        after = ("", "")
        while True:
            rows = self._accounts.execute(
                f"{_ACCOUNT} WHERE (x.createdAt, x.did) > (?, ?)"
                " ORDER BY x.createdAt, x.did LIMIT ?",
                (*after, PAGE_ROWS),
            )
            for row in rows:
                yield _account(row)
            if len(rows) < PAGE_ROWS:
                return
            after = (rows[-1][2], rows[-1][0])

    def list_app_passwords(self, did: str) -> list[ReferenceAppPassword]:
        """Return the app passwords of an account, oldest first."""
        rows = self._accounts.execute(
            "SELECT name, passwordScrypt, createdAt, privileged FROM app_password WHERE did = ?"
            " ORDER BY createdAt, name",
            (did,),
        )
        return [ReferenceAppPassword(r[0], r[1], parse_instant(r[2]), bool(r[3])) for r in rows]

    def list_refresh_tokens(self, did: str) -> list[ReferenceRefreshToken]:
        """Return the refresh tokens of an account."""
        rows = self._accounts.execute(
            "SELECT id, expiresAt, appPasswordName, nextId FROM refresh_token WHERE did = ?"
            " ORDER BY id",
            (did,),
        )
        return [ReferenceRefreshToken(r[0], parse_instant(r[1]), r[2], r[3]) for r in rows]

    def list_invites(self) -> Iterator[ReferenceInvite]:
        """Yield all invite codes."""
        after = ""
        while True:
            rows = self._accounts.execute(
                "SELECT code, availableUses, disabled, forAccount, createdBy, createdAt"
                " FROM invite_code WHERE code > ? ORDER BY code LIMIT ?",
                (after, PAGE_ROWS),
            )
            for code, uses, disabled, holder, maker, created in rows:
                yield ReferenceInvite(
                    code,
                    int(uses),
                    bool(disabled),
                    holder,
                    maker,
                    parse_instant(created),
                    self._uses_of(code),
                )
            if len(rows) < PAGE_ROWS:
                return
            after = rows[-1][0]

    def _uses_of(self, code: str) -> tuple[tuple[str, int], ...]:
        rows = self._accounts.execute(
            "SELECT usedBy, usedAt FROM invite_code_use WHERE code = ? ORDER BY usedAt, usedBy",
            (code,),
        )
        return tuple((did, parse_instant(at)) for did, at in rows)

    def count_oauth_tokens(self) -> int:
        """Return how many sessions of OAuth clients there are; old versions have none."""
        if not self._accounts.has_table("token"):
            return 0
        return int(self._accounts.execute("SELECT count(*) FROM token")[0][0])

    def last_seq(self) -> int:
        """Return the number of the last event, 0 when there was none.

        The counter of the table counts too: the last rows may have been deleted.
        """
        row = self._events.execute("SELECT max(seq) FROM repo_seq")[0][0]
        given = self._events.execute("SELECT seq FROM sqlite_sequence WHERE name = 'repo_seq'")
        return max(int(row or 0), int(given[0][0]) if given else 0)

    def last_seq_before(self, at: str) -> int:
        """Return the last number that was given before an instant (in the words of the file)."""
        row = self._events.execute("SELECT max(seq) FROM repo_seq WHERE sequencedAt < ?", (at,))
        return int(row[0][0] or 0)

    def list_events(self, after: int) -> Iterator[ReferenceEvent]:
        """Yield the valid events behind a number, in order."""
        rows = self._events.iterate(
            "SELECT seq, did, eventType, event, sequencedAt FROM repo_seq"
            " WHERE seq > ? AND invalidated = 0 ORDER BY seq",
            (after,),
        )
        for seq, did, kind, content, at in rows:
            yield ReferenceEvent(seq, did, kind, bytes(content), parse_instant(at))

    def count_events(self, after: int) -> int:
        """Return how many valid events there are behind a number."""
        row = self._events.execute(
            "SELECT count(*) FROM repo_seq WHERE seq > ? AND invalidated = 0", (after,)
        )
        return int(row[0][0])

    def open_store(self, did: str) -> "ReferenceStore":
        """Open the files of one account. Raises: NotReference, SourceInUse, Corrupt."""
        if "/" in did or not did.startswith("did:"):
            raise NotReference(f"{did!r} is not a DID")
        folder = self._paths.actors / sha256(did.encode()).hexdigest()[:2] / did
        return ReferenceStore(did, folder, self._scratch)

    def list_reserved_keys(self) -> list[tuple[str, bytes, int]]:
        """Return `(did or did:key, secret, made at)` of keys that wait for their accounts."""
        folder = self._paths.reserved_keys
        if not folder.is_dir():
            return []
        return [
            (file.name, file.read_bytes(), int(file.stat().st_mtime) * 1_000_000)
            for file in sorted(folder.iterdir())
            if file.is_file()
        ]

    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """Return what changes when somebody writes to the databases of the host."""
        files = (self._paths.account_db, self._paths.sequencer_db)
        stats = [(file, file.stat()) for file in files]
        return tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats)


class ReferenceStore:
    """The files of one account. A `BlockSource` of its repo."""

    def __init__(self, did: str, folder: Path, scratch: Path) -> None:
        file = folder / "store.sqlite"
        if not file.is_file():
            raise NotReference(f"{file} is not there: the repo of this account is missing")
        self._did = did
        self._folder = folder
        self._store = open_file(file, "account store", scratch)
        self._copy = scratch / file.name

    def close(self) -> None:
        """Close the database, and delete the copy of it if one was needed."""
        self._store.close()
        self._copy.unlink(missing_ok=True)

    def signing_key(self) -> bytes:
        """Return the secret of the signing key. Raises: Corrupt."""
        try:
            secret = (self._folder / "key").read_bytes()
        except OSError as error:
            raise Corrupt(f"the signing key cannot be read: {error.strerror}") from error
        if len(secret) != KEY_BYTES:
            raise Corrupt(f"the signing key has {len(secret)} bytes, not {KEY_BYTES}")
        return secret

    def root(self) -> tuple[Cid, str]:
        """Return the CID of the commit and its rev. Raises: Corrupt."""
        rows = self._store.execute("SELECT did, cid, rev FROM repo_root")
        if len(rows) != 1 or rows[0][0] != self._did:
            raise Corrupt("the account has no head, or another account's")
        return _cid(rows[0][1]), str(rows[0][2])

    def get(self, cid: Cid) -> bytes:
        """Return the bytes of a block. Raises: MissingBlock."""
        rows = self._store.execute("SELECT content FROM repo_block WHERE cid = ?", (str(cid),))
        if not rows:
            raise MissingBlock(cid)
        return bytes(rows[0][0])

    def block_rev(self, cid: Cid) -> str | None:
        """Return the rev at which a block was stored."""
        rows = self._store.execute("SELECT repoRev FROM repo_block WHERE cid = ?", (str(cid),))
        return str(rows[0][0]) if rows else None

    def count_records(self) -> int:
        """Return how many records the index has."""
        return int(self._store.execute("SELECT count(*) FROM record")[0][0])

    def find_record(self, path: str) -> ReferenceRecord | None:
        """Return what the index has of the record under a path."""
        rows = self._store.execute(
            "SELECT cid, repoRev, indexedAt, takedownRef FROM record WHERE uri = ?",
            (f"at://{self._did}/{path}",),
        )
        if not rows:
            return None
        cid, rev, indexed_at, takedown_ref = rows[0]
        return ReferenceRecord(cid, rev, parse_instant(indexed_at), takedown_ref)

    def count_blobs(self) -> int:
        """Return how many blobs the account has."""
        return int(self._store.execute("SELECT count(*) FROM blob")[0][0])

    def list_blobs(self) -> Iterator[ReferenceBlob]:
        """Yield the blobs of the account."""
        after = ""
        while True:
            rows = self._store.execute(
                "SELECT cid, mimeType, size, tempKey, createdAt, takedownRef FROM blob"
                " WHERE cid > ? ORDER BY cid LIMIT ?",
                (after, PAGE_ROWS),
            )
            for cid, mime_type, size, temp_key, created, takedown in rows:
                yield ReferenceBlob(
                    _cid(cid), mime_type, int(size), temp_key, parse_instant(created), takedown
                )
            if len(rows) < PAGE_ROWS:
                return
            after = rows[-1][0]

    def list_preferences(self) -> list[tuple[str, str]]:
        """Return `(type, JSON text)` of the preferences, in order."""
        rows = self._store.execute("SELECT name, valueJson FROM account_pref ORDER BY id")
        return [(str(name), str(text)) for name, text in rows]


def parse_instant(text: str) -> int:
    """Return the unix microseconds of an instant as the reference writes it. Raises: Corrupt."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise Corrupt(f"{text!r} is not a time") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)


def _instant(text: str | None) -> int | None:
    return None if text is None else parse_instant(text)


def _account(row: tuple[Any, ...]) -> ReferenceAccount:
    did, handle, created, takedown_ref, deactivated, delete_after, email, confirmed, hashed, no = (
        row
    )
    return ReferenceAccount(
        did,
        handle,
        parse_instant(created),
        takedown_ref,
        _instant(deactivated),
        _instant(delete_after),
        email,
        _instant(confirmed),
        hashed,
        bool(no),
    )


def _cid(text: str) -> Cid:
    try:
        return parse_cid(text)
    except InvalidCid as error:
        raise Corrupt(f"{text!r} is not a CID") from error
