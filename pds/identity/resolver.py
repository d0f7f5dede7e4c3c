"""The one place that answers "who is this?": DID documents and handles, remembered for a while.

Lookups of the same subject at the same time are one lookup, and it goes on when a caller gives up.
A stale answer is returned at once while a new one is fetched behind it. Answers are kept in memory;
a node that is given an `IdentityStore` also keeps good ones across restarts.

Only two kinds of error come out: `NotResolvable` (the classes of `errors`) and `Unreachable`.

Each method is one direction; `services.identity` joins the two and knows our own accounts.

Spec: (ID-12, ID-35, ID-36)
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar, cast

from pds.errors import NotResolvable, RemoteError, StoreError, Unreachable
from pds.identity.cache import AnswerCache, CacheTimes, Remembered, Standing
from pds.identity.did_plc import PlcClient
from pds.identity.did_web import DidWebResolver
from pds.identity.errors import DidNotFound, UnsupportedDidMethod
from pds.identity.handle import HandleResolver
from pds.protocol.data import InvalidData, parse_json
from pds.protocol.diddoc import DidDocument, InvalidDidDocument, parse_did_document
from pds.protocol.keys import PublicKey
from pds.protocol.syntax import (
    Did,
    Handle,
    InvalidSyntax,
    is_blessed_did,
    parse_did,
)

T = TypeVar("T")

MAX_LOOKUPS: Final = 500
"""Different subjects that may be looked up at once; more callers are told to try again."""

OBJECT_BYTES: Final = 48
"""What one mark of JSON structure costs once it is parsed: measured 20 to 64."""

_log: Final = logging.getLogger(__name__)


class IdentityStore(Protocol):
    """Keeps good answers across restarts. Losing them costs nothing but requests."""

    async def load(self, subject: str) -> tuple[bytes, int] | None:
        """Return the saved answer and when it was fetched (unix microseconds)."""

    async def save(self, subject: str, value: bytes, fetched_at_us: int) -> None:
        """Save an answer over an older one."""

    async def forget(self, subject: str) -> None:
        """Drop a saved answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverSettings:
    """How long answers are used, and whether development identities are allowed."""

    dids: CacheTimes = field(default_factory=CacheTimes)
    handles: CacheTimes = field(
        default_factory=lambda: CacheTimes(stale_s=300.0, max_s=3600.0, negative_s=15.0)
    )
    dev: bool = False


class IdentityResolver:
    """Resolves identities for the whole program. Close it at the end."""

    def __init__(
        self,
        *,
        plc: PlcClient,
        web: DidWebResolver,
        handles: HandleResolver,
        settings: ResolverSettings | None = None,
        store: IdentityStore | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        settings = settings or ResolverSettings()
        self._plc = plc
        self._web = web
        self._dev = settings.dev
        self._documents = _Lookups(
            self._fetch_document, _load_document, AnswerCache(settings.dids), store, now_s
        )
        self._handles = _Lookups(
            lambda handle: _fetch_handle(handles, Handle(handle)),
            _load_did,
            AnswerCache(settings.handles),
            None,
            now_s,
        )

    async def close(self) -> None:
        """Stop every lookup that is still running."""
        await self._documents.close()
        await self._handles.close()

    async def resolve_did(self, did: Did, *, refresh: bool = False) -> DidDocument:
        """Return the document of `did`, from memory unless `refresh` (after a bad signature).

        A refresh believes an answer that is a few seconds old.
        Raises: DidNotFound, DidDeactivated, UnsupportedDidMethod, Unreachable.
        """
        if not is_blessed_did(did, dev=self._dev):
            raise UnsupportedDidMethod(f"{did} is not a DID of a supported method")
        return await self._documents.get(did, refresh=refresh)

    def recall_did(self, did: Did) -> DidDocument | None:
        """Return the document of `did` if it is in memory and fresh; waits for nothing."""
        return self._documents.recall(did)

    async def resolve_signing_key(self, did: Did, *, refresh: bool = False) -> PublicKey | None:
        """Return the account's signing key, or None if its document has no usable one.

        Raises: as `resolve_did`.
        """
        return (await self.resolve_did(did, refresh=refresh)).signing_key

    async def resolve_handle(self, handle: Handle, *, refresh: bool = False) -> Did:
        """Return the DID that `handle` names: one direction only (ID-13).

        Raises: HandleNotFound, Unreachable.
        """
        return await self._handles.get(handle, refresh=refresh)

    async def forget(self, did: Did, handle: Handle | None = None) -> None:
        """Drop what is remembered, after a change that we made or heard of."""
        await self._documents.forget(did)
        if handle is not None:
            await self._handles.forget(handle)

    async def _fetch_document(self, did: str) -> tuple[DidDocument, bytes]:
        if did.startswith("did:plc:"):
            content = await self._plc.fetch_document(Did(did))
        else:
            content = await self._web.fetch_document(Did(did))
        try:
            return _load_document(did, content), content
        except InvalidDidDocument as error:
            raise DidNotFound(f"{did} has no valid document") from error


class _Lookups(Generic[T]):
    """Cache, single flight, background refresh and persistence for one kind of subject."""

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[tuple[T, bytes]]],
        load: Callable[[str, bytes], T],
        cache: AnswerCache[T],
        store: IdentityStore | None,
        now_s: Callable[[], float],
    ) -> None:
        self._fetch = fetch
        self._load = load
        self._cache = cache
        self._store = store
        self._now_s = now_s
        self._running: dict[str, asyncio.Task[T]] = {}
        self._tasks: set[asyncio.Task[T]] = set()
        self._saves: set[asyncio.Task[None]] = set()

    def recall(self, subject: str) -> T | None:
        found = self._cache.get(subject, self._now_s())
        if found is None or found[1] is not Standing.FRESH:
            return None
        return found[0].value

    async def get(self, subject: str, *, refresh: bool) -> T:
        now_s = self._now_s()
        if not refresh or self._cache.is_settled(subject, now_s):
            found = self._cache.get(subject, now_s)
            if found is not None:
                remembered, standing = found
                if standing is Standing.STALE:
                    self._start(subject, use_store=False)
                return _value(remembered)
        task = self._start(subject, use_store=not refresh)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not _is_being_cancelled():
                raise Unreachable("identity lookups are stopping") from None
            raise

    async def forget(self, subject: str) -> None:
        self._cache.forget(subject)
        self._running.pop(subject, None)  # Its waiters get their answer; nobody else does.
        await self._store_safely(lambda store: store.forget(subject))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._saves, return_exceptions=True)

    def _start(self, subject: str, *, use_store: bool) -> asyncio.Task[T]:
        """Return the lookup of `subject` that is running, or start one."""
        task = self._running.get(subject)
        if task is not None:
            return task
        if len(self._tasks) >= MAX_LOOKUPS:
            raise Unreachable("too many identities are being looked up")
        task = asyncio.create_task(self._look_up(subject, use_store=use_store))
        self._running[subject] = task
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._finish(subject, done))
        return task

    def _finish(self, subject: str, task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)
        if self._running.get(subject) is task:
            del self._running[subject]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, RemoteError):
            _log.error("identity.lookup_failed", exc_info=error)

    def _is_current(self, subject: str) -> bool:
        """Whether the running lookup was not overtaken by `forget`."""
        return self._running.get(subject) is asyncio.current_task()

    async def _look_up(self, subject: str, *, use_store: bool) -> T:
        if use_store and (saved := await self._load_saved(subject)) is not None:
            return saved
        try:
            value, content = await self._fetch(subject)
        except NotResolvable as error:
            if self._is_current(subject):
                self._cache.put_error(subject, error, self._now_s(), is_definite=True)
                self._behind(lambda store: store.forget(subject))
            raise
        except RemoteError as error:
            unreachable = Unreachable(str(error))
            if self._is_current(subject):
                self._cache.put_error(subject, unreachable, self._now_s(), is_definite=False)
            raise unreachable from error
        now_s = self._now_s()
        if self._is_current(subject):
            self._cache.put(subject, value, _weight(content), now_s)
            self._behind(lambda store: store.save(subject, content, int(now_s * 1e6)))
        return value

    async def _load_saved(self, subject: str) -> T | None:
        """Put a saved answer into memory with its true age; None if it may not be used any more."""
        if self._store is None:
            return None
        try:
            saved = await self._store.load(subject)
            if saved is None:
                return None
            content, fetched_at_us = saved
            value = self._load(subject, content)
        except (StoreError, ValueError):
            return None  # A damaged or unreadable copy is as good as none: it is fetched again.
        if not self._is_current(subject):
            return None
        self._cache.put(subject, value, _weight(content), fetched_at_us / 1e6)
        found = self._cache.get(subject, self._now_s())
        return None if found is None else found[0].value

    def _behind(self, act: Callable[[IdentityStore], Awaitable[None]]) -> None:
        """Change the saved copy after the answer was given."""
        if self._store is not None:
            task = asyncio.create_task(self._store_safely(act))
            self._saves.add(task)
            task.add_done_callback(self._saves.discard)

    async def _store_safely(self, act: Callable[[IdentityStore], Awaitable[None]]) -> None:
        if self._store is None:
            return
        try:
            await act(self._store)
        except StoreError:
            # The copy only saves requests after a restart; its loss must not fail the lookup.
            _log.warning("identity.cache_not_saved")


def _weight(content: bytes) -> int:
    """Roughly the memory that an answer takes once it is parsed.

    Each JSON value is an object of its own, so that a document of many small ones takes twenty
    times its length; strangers choose what is in theirs.
    """
    return len(content) + OBJECT_BYTES * (1 + sum(content.count(mark) for mark in b",:[{"))


def _value(remembered: Remembered[T]) -> T:
    if remembered.error is not None:
        raise type(remembered.error)(str(remembered.error))  # A fresh one: tracebacks accumulate.
    return cast("T", remembered.value)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _load_document(did: str, content: bytes) -> DidDocument:
    """Parse a document. Raises: InvalidDidDocument (a ValueError)."""
    try:
        parsed = parse_json(content)  # Strict: whatever comes through can be served as it is.
    except InvalidData as error:
        raise InvalidDidDocument("DID document is not usable JSON") from error
    return parse_did_document(parsed, Did(did))


def _load_did(_handle: str, content: bytes) -> Did:
    """Parse a DID. Raises: InvalidSyntax (a ValueError)."""
    try:
        return parse_did(content.decode("ascii"))
    except UnicodeDecodeError as error:
        raise InvalidSyntax("not a DID") from error


async def _fetch_handle(handles: HandleResolver, handle: Handle) -> tuple[Did, bytes]:
    did = await handles.resolve(handle)
    return did, did.encode("ascii")
