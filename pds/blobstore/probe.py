"""Finds out what an S3 provider really does, by doing it: documentation and habit prove nothing.

Every check works on objects of its own under a random folder and removes them. A check that fails
says what came instead; the report says which of them a server needs.
"""

import asyncio
import base64
import hashlib
import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError
from obstore.store import S3Store

from pds.blobstore.s3 import S3Settings, open_bucket
from pds.errors import Unavailable

PART_BYTES: Final = 5 << 20
"""The smallest part that S3 allows."""
LIST_ROUNDS: Final = 5
HTTP_TIMEOUT_S: Final = 15.0
NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
LASTS: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that a provider can do or cannot. `is_needed`: blobs cannot be kept without it."""

    name: str
    is_there: bool
    is_needed: bool
    detail: str


class Missing(Exception):
    """The provider does not do what a check asks for; the message says what it did."""


class Probe:
    """The checks of one bucket."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._bucket = open_bucket(settings)
        self._folder = f"{settings.folder}-probe-{secrets.token_hex(6)}"

    async def run(self, note: Callable[[str], None] = lambda name: None) -> list[Feature]:
        """Make all checks, the name of each told to `note` before. Raises: Unavailable."""
        checks: list[tuple[str, bool, Callable[[], Awaitable[str]]]] = [
            ("write, read, delete", True, self._basics),
            ("range reads", True, self._range),
            ("multipart upload", True, self._multipart),
            ("lists are consistent", True, self._list_consistency),
            ("lists are in order", True, self._list_order),
            ("wrong secret is refused", True, self._wrong_secret),
            ("damaged uploads are refused", False, self._checksum),
            ("SHA-256 checksums", False, self._sha256),
            ("conditional put", False, self._conditional_put),
            ("presigned reads", False, self._presign),
        ]
        found: list[Feature] = []
        try:
            for name, is_needed, check in checks:
                note(name)
                found.append(await _judge(name, is_needed, check))
                if len(found) == 1 and not found[0].is_there:
                    raise Unavailable(f"the bucket cannot be used at all: {found[0].detail}")
        finally:
            await self._clean()
        return found

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    async def _put(self, name: str, content: bytes, bucket: S3Store | None = None) -> None:
        path = self._path(name)
        await obstore.put_async(bucket or self._bucket, path, content, use_multipart=False)

    async def _get(self, name: str) -> bytes:
        found = await obstore.get_async(self._bucket, self._path(name))
        return bytes(await found.bytes_async())

    async def _names(self) -> list[str]:
        pages = obstore.list(self._bucket, f"{self._folder}/")
        return [
            found["path"].removeprefix(f"{self._folder}/") async for page in pages for found in page
        ]

    async def _basics(self) -> str:
        await self._put("basic", b"content")
        if await self._get("basic") != b"content":
            raise Missing("other bytes came back")
        size = (await obstore.head_async(self._bucket, self._path("basic")))["size"]
        if size != len(b"content"):
            raise Missing(f"the size is said to be {size}")
        await self._put("basic", b"")
        if await self._get("basic") != b"":
            raise Missing("an empty object came back with content")
        await obstore.delete_async(self._bucket, self._path("basic"))
        try:
            await self._get("basic")
        except FileNotFoundError:
            return "also empty objects"
        raise Missing("a deleted object was still there")

    async def _range(self) -> str:
        await self._put("range", bytes(range(200)))
        options: obstore.GetOptions = {"range": (10, 20)}
        found = await obstore.get_async(self._bucket, self._path("range"), options=options)
        content = bytes(await found.bytes_async())
        if content != bytes(range(10, 20)):
            raise Missing(f"asked for 10 bytes, got {len(content)}")
        return "only what was asked for is sent"

    async def _multipart(self) -> str:
        content = secrets.token_bytes(PART_BYTES) * 2 + b"the last part"
        await obstore.put_async(
            self._bucket, self._path("parts"), content, use_multipart=True, chunk_size=PART_BYTES
        )
        if await self._get("parts") != content:
            raise Missing("other bytes came back")
        return "3 parts"

    async def _list_consistency(self) -> str:
        for number in range(LIST_ROUNDS):
            name = f"list-{number}"
            await self._put(name, b"x")
            if name not in await self._names():
                raise Missing("an object was not listed right after it was written")
            await obstore.delete_async(self._bucket, self._path(name))
            if name in await self._names():
                raise Missing("an object was listed right after it was deleted")
        return f"{LIST_ROUNDS} of {LIST_ROUNDS} rounds"

    async def _list_order(self) -> str:
        for name in ("order/b/2", "order/a/10", "order/a/2", "order/ab", "order/B"):
            await self._put(name, b"x")
        names = [name for name in await self._names() if name.startswith("order/")]
        if names != sorted(names):
            raise Missing(", ".join(names))
        return "by bytes"

    async def _wrong_secret(self) -> str:
        if not self._settings.secret_access_key:
            raise Missing("not tried: the key comes from the environment")
        wrong = replace(self._settings, secret_access_key=secrets.token_hex(16))
        try:
            await self._put("stolen", b"x", open_bucket(wrong, retries=0))
        except PermissionDeniedError:
            return "403"
        raise Missing("an upload with a wrong secret was accepted: anybody can write here")

    async def _checksum(self) -> str:
        url = await obstore.sign_async(self._bucket, "PUT", self._path("sum"), LASTS)
        right = base64.b64encode(hashlib.md5(b"good", usedforsecurity=False).digest()).decode()
        status, _ = await asyncio.to_thread(
            self._request, "PUT", url, b"good", {"Content-MD5": right}
        )
        if status >= 300:
            raise Missing(f"a right Content-MD5 was answered {status}")
        status, _ = await asyncio.to_thread(
            self._request, "PUT", url, b"evil", {"Content-MD5": right}
        )
        if status < 300:
            raise Missing("a body that is not what its Content-MD5 says was accepted")
        return f"wrong Content-MD5 is answered {status}"

    async def _sha256(self) -> str:
        bucket = open_bucket(self._settings, retries=0, checksum_algorithm="SHA256")
        await self._put("sha256", b"content", bucket)
        if await self._get("sha256") != b"content":
            raise Missing("other bytes came back")
        return "accepted"

    async def _conditional_put(self) -> str:
        path = self._path("once")
        await obstore.put_async(self._bucket, path, b"first", mode="create")
        try:
            await obstore.put_async(self._bucket, path, b"second", mode="create")
        except AlreadyExistsError:
            return "the second is refused"
        raise Missing("an object that must not exist was overwritten")

    async def _presign(self) -> str:
        await self._put("signed", b"open")
        await self._put("other", b"shut")
        url = await obstore.sign_async(self._bucket, "GET", self._path("signed"), LASTS)
        status, content = await asyncio.to_thread(self._request, "GET", url)
        if (status, content) != (200, b"open"):
            raise Missing(f"answered {status}")
        elsewhere = url.replace(self._path("signed"), self._path("other"))
        status, content = await asyncio.to_thread(self._request, "GET", elsewhere)
        if status < 400:
            raise Missing("a URL signed for one object opens another")
        return f"for one object only (others {status})"

    def _request(
        self,
        verb: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> tuple[int, bytes]:
        """One plain request to a URL of the operator's own provider. Runs on a thread."""
        request = urllib.request.Request(url, body, dict(headers), method=verb)  # noqa: S310
        context = ssl.create_default_context()
        if self._settings.ca_pem is not None:
            context.load_verify_locations(cadata=self._settings.ca_pem.decode())
        try:
            with urllib.request.urlopen(  # noqa: S310
                request, timeout=HTTP_TIMEOUT_S, context=context
            ) as answer:
                return answer.status, answer.read(1 << 16)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(1 << 16)

    async def _clean(self) -> None:
        try:
            for name in await self._names():
                await obstore.delete_async(self._bucket, self._path(name))
        except BaseError:
            return  # what made the checks fail; the objects are small and named as a probe's


async def _judge(name: str, is_needed: bool, check: Callable[[], Awaitable[str]]) -> Feature:
    try:
        return Feature(name, True, is_needed, await check())
    except Missing as error:
        return Feature(name, False, is_needed, str(error))
    except (BaseError, FileNotFoundError, OSError) as error:
        text = str(error).split("\n", 1)[0].split("?", 1)[0]
        return Feature(name, False, is_needed, text[:200])
