"""Copies blobs between hosts: several at a time, each hashed, each tried a few times.

What has arrived is known from the rows of blobs, here or at the other host: a copy that was cut off
goes on with what is missing. A blob that a host says it does not have is gone (records may refer to
blobs that were lost long ago); one that could not be had for another reason is not, and keeps the
move from going on unless its owner lets it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Any, Final

from pds.errors import BadAnswer, NotResolvable, RemoteError, RequestError
from pds.log import get_logger
from pds.net.http_errors import AnswerTooLarge
from pds.net.xrpc_client import XrpcRejected
from pds.protocol.cid import Cid, InvalidCid, parse_cid
from pds.services.blobs import OpenBlob
from pds.services.migration_host import MAX_PAGES
from pds.services.migration_problems import Code, MoveProblem
from pds.services.migration_state import MAX_NAMED, Direction
from pds.services.migration_work import Work
from pds.store.blobs import count_blobs
from pds.store.engine import Txn
from pds.store.repos import get_account_repo

TRIES: Final = 3
PAUSE_S: Final = 0.5
PAGE: Final = 100

_log: Final = get_logger(__name__)

CopyOne = Callable[[str], Awaitable[int]]
"""Copies one blob and returns its size. Raises: BlobGone, RemoteError, RequestError."""


class BlobGone(Exception):
    """The host that should have a blob says that it has none."""


class _Tally:
    """What came of one pass."""

    def __init__(self) -> None:
        self.gone: list[str] = []
        self.failed: dict[str, str] = {}


async def copy_in(work: Work) -> None:
    """Fetch what records here refer to and is not here. Raises: MoveProblem."""
    tally = _Tally()
    await count_held(work)
    cursor: str | None = None
    while True:
        page, cursor = await work.parts.blobs.list_missing(work.aid, cursor=cursor, limit=PAGE)
        await _copy_page(work, [str(blob.cid) for _, blob in page], _fetch(work), tally)
        await count_held(work)
        await work.save()
        if cursor is None:
            break
    await _judge(work, tally)


async def copy_named(work: Work, cids: Sequence[str]) -> set[str]:
    """Fetch these blobs, and return those that could not be had."""
    tally = _Tally()
    named = list(dict.fromkeys(cids))
    for start in range(0, len(named), PAGE):
        await _copy_page(work, named[start : start + PAGE], _fetch(work), tally)
    return {*tally.gone, *tally.failed}


async def copy_out(work: Work) -> None:
    """Send what the other host says it misses. Raises: MoveProblem, RemoteError."""
    tally = _Tally()
    await count_held(work)
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        params = {"limit": PAGE} if cursor is None else {"limit": PAGE, "cursor": cursor}
        answer = await work.host.query_as_owner("com.atproto.repo.listMissingBlobs", **params)
        found = answer.get("blobs")
        entries = found if isinstance(found, list) else []
        cids = [entry.get("cid") for entry in entries if isinstance(entry, dict)]
        await _copy_page(work, [cid for cid in cids if isinstance(cid, str)], _send(work), tally)
        await work.save()
        following = answer.get("cursor")
        if not isinstance(following, str) or following == cursor or not cids:
            break
        cursor = following
    await _judge(work, tally)


async def count_held(work: Work) -> None:
    """Note what is here of the account."""

    def count(txn: Txn) -> tuple[int, int, int]:
        account = get_account_repo(txn, work.aid)
        if account is None or account.repo is None:
            return 0, 0, 0
        return account.repo.record_count, *count_blobs(txn, work.aid, account.repo.repo_id)

    records, expected, stored = await work.parts.engine.read("move.count", count)
    state = work.state
    state.records, state.blobs_expected = records, expected
    if work.direction is Direction.IN:
        state.blobs_copied = stored


async def _copy_page(work: Work, cids: Sequence[str], copy: CopyOne, tally: _Tally) -> None:
    known_gone = set(work.state.blobs_gone)
    slots = asyncio.Semaphore(max(work.parts.settings.parallel_blobs, 1))

    async def one(cid: str) -> None:
        async with slots:
            await _copy_one(work, cid, copy, tally)

    async with asyncio.TaskGroup() as group:
        for cid in cids:
            if cid in known_gone:
                tally.gone.append(cid)
            else:
                group.create_task(one(cid))


async def _copy_one(work: Work, cid: str, copy: CopyOne, tally: _Tally) -> None:
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            await work.parts.sleep(PAUSE_S * (1 << attempt))
        try:
            size = await copy(cid)
        except BlobGone:
            tally.gone.append(cid)
            return
        except (XrpcRejected, AnswerTooLarge, RequestError) as error:
            reason = str(error)
            break  # Asked again, it would be said again.
        except RemoteError as error:
            reason = str(error)
        else:
            work.state.blob_bytes += size
            if work.direction is Direction.OUT:
                work.state.blobs_copied += 1
            return
    _log.info("move.blob_not_copied", did=work.did, cid=cid, reason=reason)
    tally.failed[cid] = reason


async def _judge(work: Work, tally: _Tally) -> None:
    """Go on, or say what is missing."""
    state = work.state
    state.blobs_gone = list(dict.fromkeys(tally.gone))[:MAX_NAMED]
    if state.blobs_gone:
        state.warn(
            f"{len(tally.gone)} blobs that records refer to are not at the host that is left"
        )
    if not tally.failed:
        return
    cid, reason = next(iter(tally.failed.items()))
    if state.accepts_missing:
        state.warn(f"{len(tally.failed)} blobs were left behind, such as {cid}: {reason}")
        return
    raise MoveProblem(
        Code.BLOBS_UNFINISHED,
        f"{len(tally.failed)} blobs could not be copied, such as {cid}: {reason}",
        "Try again later, or go on without them (--accept-missing-blobs)",
        is_passing=True,
    )


def _fetch(work: Work) -> CopyOne:
    parts, did = work.parts, work.did

    async def fetch(text: str) -> int:
        cid = _parse(text)
        try:
            async with work.host.open_blob(did, text, max_bytes=parts.settings.blob_bytes) as (
                chunks,
                media_type,
            ):
                checked = _Checked(chunks, cid, work.host.name)
                await parts.blobs.upload(work.aid, checked.read(), declared_type=media_type)
                return checked.size
        except (XrpcRejected, NotResolvable) as error:
            if _is_not_there(error):
                raise BlobGone from error
            raise

    return fetch


def _send(work: Work) -> CopyOne:
    parts, did = work.parts, work.did

    async def upload(blob: OpenBlob) -> dict[str, Any]:
        return await work.host.send(
            "com.atproto.repo.uploadBlob",
            parts.blobs.read(blob, 0, blob.size)
            if blob.content is None
            else _content(blob.content),
            media_type=blob.mime_type,
            size=blob.size,
        )

    async def send(text: str) -> int:
        try:
            blob = await parts.blobs.open(did, text, principal=work.owner)
        except RequestError as error:
            if error.name == "BlobNotFound":
                raise BlobGone from error
            raise
        answer = await work.host.send(
            "com.atproto.repo.uploadBlob",
            _content(blob.content)
            if blob.content is not None
            else parts.blobs.read(blob, 0, blob.size),
            media_type=blob.mime_type,
            size=blob.size,
        )
        taken = answer.get("blob")
        ref = taken.get("ref") if isinstance(taken, dict) else None
        if not isinstance(ref, dict) or ref.get("$link") != text:
            raise BadAnswer(f"{work.host.name} took a blob under another CID")
        return blob.size

    return send


class _Checked:
    """A stream that fails at its end if its hash is wrong, before anything of it is stored."""

    def __init__(self, chunks: AsyncIterator[bytes], cid: Cid, host: str) -> None:
        self._chunks = chunks
        self._cid = cid
        self._host = host
        self.size = 0

    async def read(self) -> AsyncIterator[bytes]:
        digest = sha256()
        async for chunk in self._chunks:
            digest.update(chunk)
            self.size += len(chunk)
            yield chunk
        if Cid.of_raw_digest(digest.digest()) != self._cid:
            raise BadAnswer(f"{self._host} sent bytes that are not those of {self._cid}")


async def _content(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _parse(text: str) -> Cid:
    try:
        return parse_cid(text)
    except InvalidCid as error:
        raise BlobGone from error


def _is_not_there(error: RemoteError) -> bool:
    """Whether a host says that it has no such blob, and not that it shows none of this account."""
    if isinstance(error, XrpcRejected):
        return error.error == "BlobNotFound" or "blob not found" in error.message.lower()
    return isinstance(error, NotResolvable)
