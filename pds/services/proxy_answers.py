"""What the other side of the service proxy answers: good answers on the way, bad ones worded anew.

A good answer is passed on with a fixed list of headers. Of an error only a name and a message come
through, and a fault of theirs is never reported as one of ours (XRPC-67).

Spec: xrpc#service-proxying (XRPC-66, XRPC-67)
"""

from collections.abc import AsyncIterator, Mapping
from typing import Final, Protocol

from pds.errors import ProtocolError, RemoteError, RequestError
from pds.protocol.data import parse_json

FORWARDED_ANSWER_HEADERS: Final = (
    "content-length",
    "content-encoding",
    "content-type",
    "content-language",
    "atproto-repo-rev",
    "atproto-content-labelers",
    "retry-after",
)
MAX_ERROR_BODY_BYTES: Final = 64_000
MAX_DIGITS: Final = 20
NOT_IMPLEMENTED: Final = 501
MAX_ERROR_NAME_CHARS: Final = 100

_NAMES_OF_OUR_FAULTS: Final = frozenset({"InternalServerError", "Internal Server Error"})


class UpstreamAnswer(Protocol):
    """An answer whose body is still on the way."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; look-up ignores case."""

    def iter_chunks(self) -> AsyncIterator[bytes]:
        """Yield the body, content coding untouched. Raises: RemoteError."""

    async def read(self, max_bytes: int | None = None) -> bytes:
        """Return the whole body, decoded. Raises: RemoteError."""


class ProxiedAnswer:
    """A good answer whose body is still on the way. Use it inside the `async with` only, once."""

    def __init__(
        self, answer: UpstreamAnswer, headers: Mapping[str, str], *, has_body: bool
    ) -> None:
        self.status = answer.status
        self.headers = headers
        self._answer = answer
        self._has_body = has_body

    async def stream(self) -> AsyncIterator[bytes]:
        """Wait for the first bytes, and return all of them, content coding untouched.

        Raises: UpstreamError before the first; RemoteError from the iterator if it breaks off.
        """
        if not self._has_body:
            return _resume(b"", None)
        chunks = self._answer.iter_chunks()
        try:
            first = await anext(chunks, b"")
        except RemoteError as error:
            raise failed("Upstream service gave a bad answer") from error
        return _resume(first, chunks)

    async def read(self, max_bytes: int | None = None) -> bytes:
        """Return the whole body, decoded, at most `max_bytes`. Raises: UpstreamError."""
        try:
            return await self._answer.read(max_bytes)
        except RemoteError as error:
            raise failed("Upstream service gave a bad answer") from error


class UpstreamError(RequestError):
    """What the other side answered instead of an answer, or that there was none.

    `is_outage` says that it was no refusal: nobody answered, or with a fault of their own.
    `repo_rev` is the rev up to which a refusing AppView knows the caller's repo, if it said so.
    """

    def __init__(
        self,
        name: str,
        message: str,
        status: int,
        *,
        is_outage: bool,
        repo_rev: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name, message, status, headers=headers)
        self.is_outage = is_outage
        self.repo_rev = repo_rev


def announced_bytes(headers: Mapping[str, str]) -> int:
    """Return how large an answer says that it is; 0 if it does not say."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < MAX_DIGITS else 0


async def check_answer(answer: UpstreamAnswer, *, has_body: bool) -> ProxiedAnswer:
    """Let a good answer pass. Raises: UpstreamError."""
    headers = {
        name: answer.headers[name] for name in FORWARDED_ANSWER_HEADERS if name in answer.headers
    }
    if answer.status >= 400:
        raise await _error_of(answer, headers)
    if not 200 <= answer.status < 300:
        raise failed("Upstream service gave a bad answer")
    return ProxiedAnswer(answer, headers, has_body=has_body)


async def _error_of(answer: UpstreamAnswer, headers: Mapping[str, str]) -> UpstreamError:
    """Word an error answer anew: only a name and a message come through (XRPC-67)."""
    status = 502 if answer.status == 500 else answer.status
    name, message = _generic_error(status)
    try:
        detail = parse_json(await answer.read(MAX_ERROR_BODY_BYTES))
    except (RemoteError, ProtocolError):
        detail = None  # The status says enough.
    if isinstance(detail, dict):
        found = detail.get("error")
        if isinstance(found, str) and 0 < len(found) <= MAX_ERROR_NAME_CHARS:
            is_ambiguous = status >= 500 and found in _NAMES_OF_OUR_FAULTS
            name = name if is_ambiguous else found
        text = detail.get("message")
        if isinstance(text, str):
            message = text
    retry_after = headers.get("retry-after")
    return UpstreamError(
        name,
        message,
        status,
        is_outage=status >= 500 and status != NOT_IMPLEMENTED,
        repo_rev=headers.get("atproto-repo-rev"),
        headers={"Retry-After": retry_after} if retry_after else None,
    )


def _generic_error(status: int) -> tuple[str, str]:
    if status >= 500:
        return "UpstreamFailure", "Upstream service failed"
    return "InvalidRequest", "Upstream service refused the request"


async def _resume(first: bytes, chunks: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
    if first:
        yield first
    if chunks is not None:
        async for chunk in chunks:
            yield chunk


def failed(message: str) -> UpstreamError:
    """Return what is said when nobody answered, or in a way that cannot be used."""
    return UpstreamError("UpstreamFailure", message, 502, is_outage=True)
