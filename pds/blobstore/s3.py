"""Blobs in a bucket of any provider that speaks S3.

**Uploads wait on this machine, then go up under their final key.** The key is the hash, known only
at the end. Uploading to a temporary key and copying it there would keep this disk free, but doubles
the requests, needs a copy that is atomic and works for large objects at every provider, and leaves
rubbish in the bucket after a crash. From the spool (`pds.blobstore.spool`: memory up to 1 MB, then
a nameless file, all under one budget) a blob appears in the bucket once and whole, its bytes were
checked before the first request, and a failed request can be repeated. Up to `PART_BYTES` it is
one PUT, beyond that a multipart upload; each body is signed, so the provider refuses what was
damaged on the way. A multipart upload that a crash cut off is invisible, yet billed: give the
bucket a lifecycle rule for them.

**Reads are fetched piece by piece**, `PIECE_BYTES` each, so a slow reader holds 1 MB here and no
connection there, and a request that fails is repeated without the reader noticing. With presigned
reads the client is sent to the bucket instead; then nothing here checks what it gets.

Keys are `<folder>/<place>`: aid and CID bytes, never text that a client sent. Settings of the AWS
kind in the environment (`AWS_*`) fill in what is not set, so roles of a machine work.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from pds.blobstore.base import (
    CHUNK_BYTES,
    BlobKey,
    BlobMissing,
    BlobStat,
    StagedBlob,
    StoreProperties,
    account_place,
    parse_place,
    place,
)
from pds.blobstore.spool import Spool, Spooled, StagedSpooled
from pds.errors import ConfigError, Unavailable

PART_BYTES: Final = 8 << 20
"""Size of one request of a multipart upload; with 10,000 parts the largest blob is 80 GB."""
PARTS_AT_ONCE: Final = 2
UPLOADS_AT_ONCE: Final = 8
"""With the sizes above, the memory of all uploads to one store is at most 200 MB."""
PIECE_BYTES: Final = 1 << 20
RETRIES: Final = 3
RETRY_FIRST_S: Final = 0.1
RETRY_LAST_S: Final = 2.0
PING_EVERY_S: Final = 10.0
"""A health check may come every second; a request that is paid for need not."""

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """One bucket. `endpoint` is a URL without the bucket; None means AWS."""

    bucket: str
    region: str = "us-east-1"
    endpoint: str | None = None
    force_path_style: bool = False
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    folder: str = "blobs"
    ca_pem: bytes | None = None
    upload_timeout_s: float = 300.0
    request_timeout_s: float = 30.0
    presigned_read_s: float | None = None
    owner: str | None = None
    """Who alone may keep blobs in the folder; None does not ask."""
    former_owners: tuple[str, ...] = ()
    """Earlier names of the owner, in whose place it comes."""


class S3BlobStore:
    """A bucket of blobs. Spec: XRPC-80, XRPC-84"""

    def __init__(self, settings: S3Settings, spool: Spool) -> None:
        self._settings = settings
        self._spool = spool
        self._store = open_bucket(settings)
        self._uploads = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._well_until_s = 0.0
        self._is_ours = settings.owner is None

    async def start(self) -> None:
        """Note whose blobs these are: two servers would take each other's for rubbish.

        Raises: ConfigError when they are another's; Unavailable, and then `list` asks again.
        """
        if self._is_ours or self._settings.owner is None:
            return
        path = f"{self._settings.folder}/owner"
        try:
            with failing("read the owner"):
                found = await obstore.get_async(self._store, path)
                owner: str | None = bytes(await found.bytes_async()).decode("utf-8", "replace")
        except FileNotFoundError:
            owner = None
        if owner is None or owner in self._settings.former_owners:
            owner = self._settings.owner
            with failing("write the owner"):
                await obstore.put_async(self._store, path, owner.encode())
        if owner != self._settings.owner:
            raise ConfigError(
                f"{path} in the bucket {self._settings.bucket} says that these are the blobs of"
                f" {owner}, not of {self._settings.owner}: set PDS_BLOBSTORE_S3_FOLDER, or delete"
                " that object if this server has taken over from the other"
            )
        self._is_ours = True

    @property
    def properties(self) -> StoreProperties:
        """A provider answers a PUT when the bytes are durable."""
        return StoreProperties(f"s3:{self._settings.bucket}", is_durable=True)

    @asynccontextmanager
    async def stage(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[StagedBlob]:
        """Take a stream in; nothing goes to the bucket before it is stored."""
        async with self._spool.take(chunks) as spooled:
            yield StagedSpooled(spooled, self.put)

    async def put(self, aid: int, spooled: Spooled) -> None:
        """Upload what is spooled. Raises: Unavailable."""
        key = BlobKey(aid, spooled.cid)
        path = self._path(key)
        with failing("store", key):
            async with self._uploads, asyncio.timeout(self._settings.upload_timeout_s):
                if spooled.size <= PART_BYTES:
                    content = b"".join([chunk async for chunk in spooled.chunks()])
                    await obstore.put_async(self._store, path, content, use_multipart=False)
                    return
                await obstore.put_async(
                    self._store,
                    path,
                    spooled.chunks(),
                    use_multipart=True,
                    chunk_size=PART_BYTES,
                    max_concurrency=PARTS_AT_ONCE,
                )
                found = await obstore.head_async(self._store, path)
        if found["size"] != spooled.size:
            raise Unavailable(f"the bucket has {found['size']} of {spooled.size} bytes of {key}")

    async def open(
        self, key: BlobKey, *, start: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the bytes of a blob or a part of it."""
        if start < 0 or (length is not None and length < 0):
            raise ValueError("range outside the blob")
        path = self._path(key)
        end = None if length is None else start + length
        at = start
        while end is None or at < end:
            until = at + PIECE_BYTES if end is None else min(at + PIECE_BYTES, end)
            found = await self._get(key, path, at, until)
            if found is None:
                break
            size, piece = found
            if end is None:
                end = size
            if end > size:
                raise ValueError(f"range outside the {size} bytes of the blob")
            if len(piece) != min(until, size) - at:
                raise Unavailable(
                    f"the bucket sent {len(piece)} bytes of {key}, not what was asked"
                )
            for offset in range(0, len(piece), CHUNK_BYTES):
                yield piece[offset : offset + CHUNK_BYTES]
            at += len(piece)
        if at == start:
            # Nothing was asked for, or nothing is there to be sent: only now it needs a look.
            known = await self.stat(key)
            if known is None:
                raise BlobMissing(key)
            if start > known.size or (end is not None and end > known.size):
                raise ValueError(f"range outside the {known.size} bytes of the blob")

    async def _get(self, key: BlobKey, path: str, start: int, end: int) -> tuple[int, bytes] | None:
        """Return the size of the blob and some bytes of it; None when it has none at `start`."""
        try:
            with failing("read", key):
                found = await obstore.get_async(self._store, path, options={"range": (start, end)})
                return found.meta["size"], bytes(await found.bytes_async())
        except FileNotFoundError:
            if start:
                raise Unavailable(f"blob {key.cid} went away while it was read") from None
            raise BlobMissing(key) from None
        except OutsideRange:
            return None

    async def stat(self, key: BlobKey) -> BlobStat | None:
        """Return size and time of a blob, or None."""
        try:
            with failing("look for", key):
                found = await obstore.head_async(self._store, self._path(key))
        except FileNotFoundError:
            return None
        return BlobStat(found["size"], _seconds_us(found["last_modified"]))

    async def delete(self, key: BlobKey) -> bool:
        """Remove a blob; gone for good when this returns, unless the bucket keeps versions."""
        known = await self.stat(key)
        if known is None:
            return False
        with failing("delete", key):
            await obstore.delete_async(self._store, self._path(key))
        return True

    async def list(self, aid: int | None = None) -> AsyncIterator[tuple[BlobKey, BlobStat]]:
        """Yield blobs; objects that are none of ours are passed over."""
        await self.start()  # what is listed may be deleted
        prefix = f"{self._settings.folder}/"
        under = prefix if aid is None else f"{prefix}{account_place(aid)}/"
        pages = obstore.list(self._store, under)
        while True:
            try:
                with failing("list"):
                    page = await anext(pages)
            except StopAsyncIteration:
                return
            for found in page:
                key = parse_place(found["path"].removeprefix(prefix))
                if key is not None:
                    yield key, BlobStat(found["size"], _seconds_us(found["last_modified"]))

    async def presign(self, key: BlobKey) -> str | None:
        """Return a URL into the bucket, if the operator wants clients to go there."""
        if self._settings.presigned_read_s is None:
            return None
        lasts = timedelta(seconds=self._settings.presigned_read_s)
        with failing("sign"):
            return await obstore.sign_async(self._store, "GET", self._path(key), lasts)

    async def ping(self) -> None:
        """Write a tiny object, unless that worked a moment ago."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._well_until_s:
            return
        with failing("write"):
            async with asyncio.timeout(self._settings.request_timeout_s):
                await obstore.put_async(self._store, f"{self._settings.folder}/ping", b"ping")
        self._well_until_s = now_s + PING_EVERY_S

    async def close(self) -> None:
        """Connections end by themselves; the spool is its owner's."""

    def _path(self, key: BlobKey) -> str:
        return f"{self._settings.folder}/{place(key)}"


class OutsideRange(Exception):
    """The bucket has no bytes in the range that was asked for."""


def open_bucket(
    settings: S3Settings,
    *,
    retries: int = RETRIES,
    more_options: Mapping[str, Any] = MappingProxyType({}),
    **more: Any,
) -> S3Store:
    """Return a client of the bucket; `more` goes to the library. Raises: ConfigError."""
    endpoint = settings.endpoint
    if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
        raise ConfigError(f"the S3 endpoint {endpoint} must be a URL that starts with https://")
    is_virtual = not settings.force_path_style
    options: dict[str, Any] = {
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
        "timeout": timedelta(seconds=settings.request_timeout_s),
        "connect_timeout": timedelta(seconds=min(5.0, settings.request_timeout_s)),
        "user_agent": "Freehold",
    }
    if settings.ca_pem is not None:
        options["root_certificate"] = settings.ca_pem
    config: dict[str, Any] = {
        "region": settings.region,
        "virtual_hosted_style_request": is_virtual,
        "disable_bulk_delete": True,  # not every provider has it, and we delete one by one
    }
    if endpoint is not None:
        config["endpoint"] = _virtual_host(endpoint, settings.bucket) if is_virtual else endpoint
    if settings.access_key_id and settings.secret_access_key:
        config["access_key_id"] = settings.access_key_id
        config["secret_access_key"] = settings.secret_access_key
    options.update(more_options)
    backoff = {
        "init_backoff": timedelta(seconds=RETRY_FIRST_S),
        "max_backoff": timedelta(seconds=RETRY_LAST_S),
        "base": 2,
    }
    retry: Any = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=settings.request_timeout_s * 2),
        "backoff": backoff,
    }
    try:
        return S3Store(
            settings.bucket,
            client_options=options,  # type: ignore[arg-type]
            retry_config=retry,
            **{**config, **more},
        )
    except (BaseError, ValueError) as error:
        raise ConfigError(f"cannot use the bucket {settings.bucket}: {_short(error)}") from error


def _virtual_host(endpoint: str, bucket: str) -> str:
    """Put the bucket before the host name of the endpoint. Raises: ConfigError."""
    parts = urlsplit(endpoint)
    if _is_address(parts.hostname or ""):  # The library would panic.
        raise ConfigError(
            f"the S3 endpoint {endpoint} is an address, before which no bucket can stand: set the"
            " setting with S3_FORCE_PATH_STYLE at its end to true"
        )
    if parts.netloc.startswith(f"{bucket}."):
        return endpoint
    return parts._replace(netloc=f"{bucket}.{parts.netloc}").geturl()


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@contextmanager
def failing(act: str, key: BlobKey | None = None) -> Iterator[None]:
    """Turn the library's errors into ours; "not found" is left to the caller."""
    what = f"cannot {act}" if key is None else f"cannot {act} blob {key.cid}"
    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError) as error:
        _log.error("s3.refused", extra={"act": act, "reason": _short(error)})
        raise Unavailable(f"{what}: the bucket refuses our key") from error
    except TimeoutError as error:
        raise Unavailable(f"{what}: the bucket did not answer in time") from error
    except BaseError as error:
        if "403 Forbidden" in str(error):  # as lists say it
            _log.error("s3.refused", extra={"act": act, "reason": _short(error)})
            raise Unavailable(f"{what}: the bucket refuses our key") from error
        if "416 Range Not Satisfiable" in str(error) or "InvalidRange" in str(error):
            raise OutsideRange from error
        raise Unavailable(f"{what}: {_short(error)}") from error


def _short(error: Exception) -> str:
    """The first line of a long message, without the answer's body and query."""
    text = str(error).split("\n", 1)[0].split("?", 1)[0].split(": <", 1)[0]
    return text[:200]


def _seconds_us(at: datetime) -> int:
    """Whole seconds, as the header of a single object has them; lists may be more exact."""
    return int(at.timestamp()) * 1_000_000
