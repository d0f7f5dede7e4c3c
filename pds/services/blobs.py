"""Blobs as clients use them: upload, download, lists, and the collection of what nobody needs.

An upload is hashed while it streams in, its bytes are durable before its row exists, and the row
exists before the client has an answer. Bytes of blobs without a row are deleted by jobs, under a
claim in the database (`pds.store.blobs`) that keeps every node's uploads of the same bytes apart
from the deletion. A lock per blob spares uploads of this process the wait for a claim. What is done
under that lock is finished even if the caller goes away: a transaction that was handed in happens,
and must not happen after the lock is free.

A flipped bit on the disk is never handed out as truth. Small blobs are hashed again before they are
served; larger ones while they are sent, and the last piece is kept back if the hash is wrong.
`scrub` reads all. A blob that was found damaged is refused until its bytes are uploaded again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, TypeVar

from pds.blobstore.base import BlobKey, BlobMissing, BlobStore, StagedBlob
from pds.blobstore.replicated import ReplicatedBlobStore
from pds.errors import Corrupt, RequestError, StoreError, Unavailable
from pds.protocol.cid import Cid, InvalidCid, parse_cid
from pds.protocol.data import Json
from pds.protocol.syntax import InvalidSyntax, Tid, parse_tid
from pds.services.availability import check_available, repo_not_found, sees_hidden
from pds.services.mime import choose_mime_type
from pds.services.principal import Principal, ReplayId
from pds.services.settings import setting
from pds.services.sweeping import sweep_rows
from pds.services.used_tokens import refuse_replay
from pds.store.accounts import AccountStatus, get_account_by_aid
from pds.store.blobs import (
    CLAIM_US,
    Blob,
    MissingBlob,
    claim_garbage,
    collect_temporary,
    forget_garbage,
    get_blob,
    insert_upload,
    is_garbage_claimed,
    known_blobs,
    list_blobs,
    list_garbage,
    list_missing_blobs,
    release_garbage,
)
from pds.store.clock import Clock
from pds.store.engine import MAX_BULK_ROWS, Engine, Txn
from pds.store.repos import AccountRepo, find_account_repo

CHECKED_BYTES: Final = 1 << 20
"""Blobs up to this size are hashed before each download (0.6 ms per MB)."""
MIN_TEMPORARY_S: Final = 3600
"""A client may take an hour between upload and record: the protocol's lower bound (XRPC-82)."""
JOB_ROWS: Final = MAX_BULK_ROWS
ORPHAN_AGE_US: Final = 6 * 3600 * 1_000_000
"""Bytes without a row younger than this may belong to an upload under way."""

DELETE_TIMEOUT_S: Final = CLAIM_US / 1_000_000 / 3
"""No deletion may go on when its claim has run out, also by the clock of another node."""
CLAIM_PATIENCE_S: Final = 10.0
CLAIM_POLL_S: Final = 0.05

MAX_DAMAGED: Final = 10_000
"""Damaged blobs that are remembered; with more of them the disk is the problem."""

T = TypeVar("T")

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BlobSettings:
    """What the operator can set."""

    temporary_s: int = setting(
        "PDS_BLOB_TEMPORARY_S",
        "Seconds that an upload waits for a record that refers to it; at least 3600.",
        default=24 * 3600,
    )


@dataclass(frozen=True, slots=True)
class OpenBlob:
    """A blob that may be served; `content` is there for small ones, already checked."""

    key: BlobKey
    mime_type: str
    size: int
    content: bytes | None


class Blobs:
    """The blobs of this host's accounts."""

    def __init__(
        self, *, engine: Engine, clock: Clock, store: BlobStore, settings: BlobSettings
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._store = store
        self._replicas = store if isinstance(store, ReplicatedBlobStore) else None
        self._temporary_us = max(settings.temporary_s, MIN_TEMPORARY_S) * 1_000_000
        self._locks: dict[BlobKey, _Lock] = {}
        self._damaged: set[BlobKey] = set()

    async def upload(
        self,
        aid: int,
        chunks: AsyncIterator[bytes],
        *,
        declared_type: str | None,
        declared_size: int | None = None,
        replay: ReplayId | None = None,
    ) -> Json:
        """Take in a blob and return its reference as JSON.

        The size limit is the stream's to keep. Raises: RequestError `InvalidRequest` for a length
        that is not the announced one or a blob that was taken down, `AccountTakedown` 401,
        `AccountNotFound` 403, `BadJwt` 401 for a used token; Unavailable.
        Spec: blob#blob-metadata (XRPC-44, XRPC-80, XRPC-81, XRPC-83)
        """
        async with self._store.stage(chunks) as staged:
            if declared_size is not None and declared_size != staged.size:
                raise RequestError(
                    "InvalidRequest",
                    f"Content-Length is {declared_size}, but {staged.size} bytes came",
                )
            mime_type = choose_mime_type(staged.head, declared_type)
            key = BlobKey(aid, staged.cid)
            blob = await _finish(self._store_staged(key, staged, mime_type, replay))
        return {
            "$type": "blob",
            "ref": {"$link": str(blob.cid)},
            "mimeType": blob.mime_type,
            "size": blob.size,
        }

    async def open(self, did: str, cid: str, *, principal: Principal | None = None) -> OpenBlob:
        """Find a blob that may be served to this caller.

        Raises: RequestError `BlobNotFound` and those of `check_available`; Corrupt when the stored
        bytes are not those of the CID. Spec: XRPC-87
        """
        key, blob = await self._engine.read("blob.open", _find, did, _parse_cid(cid), principal)
        if key in self._damaged:
            raise self._note_damage(key)
        if blob.size > CHECKED_BYTES:
            found = await self._store.stat(key)
            if found is not None and found.size != blob.size and self._replicas is not None:
                await self._replicas.heal(key)
                found = await self._store.stat(key)
            if found is None:
                raise self._lost(key)
            if found.size != blob.size:
                raise self._note_damage(key)
            return OpenBlob(key, blob.mime_type, blob.size, None)
        try:
            content = b"".join([chunk async for chunk in self._store.open(key)])
        except BlobMissing:
            raise self._lost(key) from None
        if Cid.of_raw(content) != key.cid:
            raise self._note_damage(key)
        return OpenBlob(key, blob.mime_type, blob.size, content)

    async def read(self, blob: OpenBlob, start: int, length: int) -> AsyncIterator[bytes]:
        """Yield a part of an open blob.

        A whole blob is hashed on the way. Raises: Corrupt instead of the last piece, so that no
        reader takes a damaged blob for complete.
        """
        if length < blob.size:
            async for chunk in self._store.open(blob.key, start=start, length=length):
                yield chunk
            return
        digest = sha256()
        last = b""
        async for chunk in self._store.open(blob.key):
            if last:
                yield last
            digest.update(chunk)
            last = chunk
        if Cid.of_raw_digest(digest.digest()) != blob.key.cid:
            raise self._note_damage(blob.key)
        yield last

    async def presign(self, blob: OpenBlob) -> str | None:
        """Return a URL outside this server to read an open blob from, if there shall be one.

        Small blobs are in memory and checked by now, so they never have one.
        """
        return None if blob.content is not None else await self._store.presign(blob.key)

    async def list_stored(
        self,
        did: str,
        *,
        since: str | None = None,
        cursor: str | None = None,
        limit: int = 500,
        principal: Principal | None = None,
    ) -> tuple[list[Cid], str | None]:
        """Return a page of blobs that records refer to, and where the next one begins.

        Raises: RequestError `InvalidRequest` for a bad cursor or rev, and those of
        `check_available`. Spec: SYNC-70, SYNC-73
        """
        after = None if cursor is None else _parse_cursor(cursor)
        rev = None if since is None else _parse_since(since)

        def read(txn: Txn) -> list[Cid]:
            account = _account(txn, did, principal)
            if account.repo is None:
                return []
            return list_blobs(
                txn,
                account.repo.repo_id,
                since=rev,
                after=after,
                limit=limit + 1,
                public_of=None if sees_hidden(account.did, principal) else account.aid,
            )

        return _page(await self._engine.read("blob.list", read), limit)

    async def list_missing(
        self, aid: int, *, cursor: str | None = None, limit: int = 500
    ) -> tuple[list[tuple[str, MissingBlob]], str | None]:
        """Return blobs that records of the account refer to and that are not here (XRPC-86)."""
        after = None if cursor is None else _parse_cursor(cursor)

        def read(txn: Txn) -> list[tuple[str, MissingBlob]]:
            account = get_account_by_aid(txn, aid)
            if account is None or account.repo_id is None:
                return []
            found = list_missing_blobs(txn, aid, account.repo_id, after=after, limit=limit + 1)
            return [(f"at://{account.did}/{blob.path}", blob) for blob in found]

        found = await self._engine.read("blob.list_missing", read)
        more = len(found) > limit
        return found[:limit], str(found[limit - 1][1].cid) if more else None

    async def collect(self) -> int:
        """Discard overdue temporary blobs, then delete the bytes of discarded blobs.

        Returns how many blobs' bytes were deleted. A job of the background (XRPC-82, XRPC-85).
        """
        now_us = self._clock.now_us()
        before_us = now_us - self._temporary_us
        await sweep_rows(
            self._engine, "blob.collect_temporary", _collect_temporary, before_us, now_us
        )
        deleted = 0
        while True:
            batch = await self._engine.read(
                "blob.list_garbage", _list_garbage, self._clock.now_us()
            )
            failed = False
            for aid, cid in batch:
                try:
                    deleted += await self._delete(BlobKey(aid, cid))
                except StoreError as error:
                    # It stays queued for the next run; the others need not wait for it.
                    failed = True
                    fields = {"aid": aid, "cid": str(cid), "reason": str(error)}
                    _log.warning("blob.not_deleted", extra=fields)
            if failed or len(batch) < JOB_ROWS:
                return deleted

    async def sweep_orphans(self) -> int:
        """Delete bytes that have no row: uploads that a crash cut off before their row was made."""
        before = self._clock.now_us() - ORPHAN_AGE_US
        deleted = 0
        batch: list[BlobKey] = []
        async for key, stat in self._store.list():
            if stat.modified_at < before:
                batch.append(key)
            if len(batch) >= JOB_ROWS:
                deleted += await self._delete_unknown(batch)
                batch = []
        return deleted + await self._delete_unknown(batch)

    async def scrub(self) -> AsyncIterator[tuple[BlobKey, bool]]:
        """Read every stored blob and yield whether its bytes are those of its CID.

        Several stores are compared and healed; a blob is then unsound when none has good bytes.
        """
        if self._replicas is not None:
            async for found in self._replicas.scrub():
                if found.is_lost:
                    self._note_damage(found.key)
                yield found.key, not found.is_lost
            return
        async for key, _ in self._store.list():
            digest = sha256()
            try:
                async for chunk in self._store.open(key):
                    digest.update(chunk)
            except BlobMissing:
                continue  # deleted since it was listed
            is_sound = Cid.of_raw_digest(digest.digest()) == key.cid
            if not is_sound:
                self._note_damage(key)
            yield key, is_sound

    async def _delete_unknown(self, keys: list[BlobKey]) -> int:
        known = await self._engine.read(
            "blob.known", known_blobs, [(key.aid, key.cid) for key in keys]
        )
        return sum([await self._delete(key) for key in keys if (key.aid, key.cid) not in known])

    async def _delete(self, key: BlobKey) -> bool:
        """Delete the bytes of a blob unless it has a row again."""
        return await _finish(self._delete_bytes(key))

    async def _delete_bytes(self, key: BlobKey) -> bool:
        with self._locked(key) as lock:
            async with lock:
                claimed_at = self._clock.now_us()
                is_ours = await self._engine.transact(
                    "blob.claim", _claim, key, claimed_at, accounts=(key.aid,), bulk=True
                )
                if not is_ours:
                    return False
                try:
                    async with asyncio.timeout(DELETE_TIMEOUT_S):
                        was_there = await self._store.delete(key)
                except TimeoutError as error:
                    # It may still happen: the claim stands until that is out of the question.
                    raise Unavailable(f"blob {key.cid} could not be deleted in time") from error
                except StoreError:
                    await self._end_claim(key, claimed_at, is_gone=False)
                    raise
                await self._end_claim(key, claimed_at, is_gone=True)
                self._damaged.discard(key)
        return was_there

    async def _end_claim(self, key: BlobKey, claimed_at: int, *, is_gone: bool) -> None:
        await self._engine.transact(
            "blob.end_claim",
            _end_claim,
            key,
            claimed_at,
            is_gone,
            accounts=(key.aid,),
            bulk=True,
        )

    async def _store_staged(
        self, key: BlobKey, staged: StagedBlob, mime_type: str, replay: ReplayId | None
    ) -> Blob:
        """Make an upload durable, then its row."""
        with self._locked(key) as lock:
            async with lock:
                while True:
                    await staged.store(key.aid)
                    upload = _Upload(key, mime_type, staged.size, self._clock.now_us(), replay)
                    blob = await self._engine.transact(
                        "blob.upload", _note_upload, upload, accounts=(key.aid,)
                    )
                    if blob is not None:
                        break
                    await self._wait_for_claim(key)
                self._damaged.discard(key)
        return blob

    async def _wait_for_claim(self, key: BlobKey) -> None:
        """Wait until no node is deleting the bytes. Raises: Unavailable after some seconds."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + CLAIM_PATIENCE_S
        while await self._engine.read("blob.claim", _is_claimed, key, self._clock.now_us()):
            if loop.time() > until_s:
                raise Unavailable("the same blob is just being deleted; upload it again")
            await asyncio.sleep(CLAIM_POLL_S)

    def _note_damage(self, key: BlobKey) -> Corrupt:
        if key not in self._damaged:
            _log.error("blob.damaged", extra={"aid": key.aid, "cid": str(key.cid)})
            if len(self._damaged) < MAX_DAMAGED:
                self._damaged.add(key)
        return Corrupt(f"blob {key.cid} of account {key.aid} is damaged")

    def _lost(self, key: BlobKey) -> RequestError:
        _log.error("blob.lost", extra={"aid": key.aid, "cid": str(key.cid)})
        return RequestError("BlobNotFound", "Blob not found")

    @contextmanager
    def _locked(self, key: BlobKey) -> Iterator[asyncio.Lock]:
        lock = self._locks.setdefault(key, _Lock())
        lock.users += 1
        try:
            yield lock.lock
        finally:
            lock.users -= 1
            if lock.users == 0:
                del self._locks[key]


async def _finish(work: Coroutine[None, None, T]) -> T:
    """Run `work` to its end even if the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: there is nobody left to tell
        raise


class _Lock:
    """A lock that goes away with its last user."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


@dataclass(frozen=True, slots=True)
class _Upload:
    """What the row of an upload is made of."""

    key: BlobKey
    mime_type: str
    size: int
    now_us: int
    replay: ReplayId | None


def _note_upload(txn: Txn, upload: _Upload) -> Blob | None:
    aid = upload.key.aid
    account = get_account_by_aid(txn, aid)
    if account is None:
        raise RequestError("AccountNotFound", "Account not found", 403)
    if account.status in (AccountStatus.TAKENDOWN, AccountStatus.SUSPENDED):
        raise RequestError("AccountTakedown", "Account has been taken down", 401)
    blob = insert_upload(
        txn,
        aid,
        cid=upload.key.cid,
        mime_type=upload.mime_type,
        size=upload.size,
        now_us=upload.now_us,
    )
    if blob is not None:  # else it is tried again, with the same token
        refuse_replay(txn, upload.replay, upload.now_us)
    return blob


def _collect_temporary(txn: Txn, before_us: int, now_us: int) -> int:
    return collect_temporary(txn, before_us=before_us, now_us=now_us, limit=JOB_ROWS)


def _list_garbage(txn: Txn, now_us: int) -> list[tuple[int, Cid]]:
    return list_garbage(txn, now_us=now_us, limit=JOB_ROWS)


def _claim(txn: Txn, key: BlobKey, now_us: int) -> bool:
    return claim_garbage(txn, key.aid, key.cid, now_us=now_us)


def _is_claimed(txn: Txn, key: BlobKey, now_us: int) -> bool:
    return is_garbage_claimed(txn, key.aid, key.cid, now_us=now_us)


def _end_claim(txn: Txn, key: BlobKey, claimed_at: int, is_gone: bool) -> None:
    end = forget_garbage if is_gone else release_garbage
    end(txn, key.aid, key.cid, claimed_at=claimed_at)


def _account(txn: Txn, did: str, principal: Principal | None) -> AccountRepo:
    account = find_account_repo(txn, did)
    if account is None:
        raise repo_not_found(did)
    check_available(account, principal)
    return account


def _find(txn: Txn, did: str, cid: Cid, principal: Principal | None) -> tuple[BlobKey, Blob]:
    account = _account(txn, did, principal)
    blob = get_blob(txn, account.aid, cid)
    if (
        blob is None
        or blob.is_temporary
        or (blob.is_taken_down and not sees_hidden(account.did, principal))
    ):
        raise RequestError("BlobNotFound", "Blob not found")
    return BlobKey(account.aid, cid), blob


def _page(found: list[Cid], limit: int) -> tuple[list[Cid], str | None]:
    return found[:limit], str(found[limit - 1]) if len(found) > limit else None


def _parse_cid(text: str) -> Cid:
    try:
        return parse_cid(text)
    except InvalidCid as error:
        raise RequestError("InvalidRequest", f"Invalid CID: {error}") from error


def _parse_cursor(cursor: str) -> Cid:
    try:
        return parse_cid(cursor)
    except InvalidCid as error:
        raise RequestError("InvalidRequest", f"Invalid cursor: {error}") from error


def _parse_since(since: str) -> Tid:
    try:
        return parse_tid(since)
    except InvalidSyntax as error:
        raise RequestError("InvalidRequest", f"Invalid since: {error}") from error
