"""One blob store made of several, any of which may be away, empty or wrong.

**Writing.** An upload goes to all stores at once and is answered when `quorum` of them have it; the
others finish behind the answer. A store that fails is left alone for a while, longer each time, so
that it costs nothing; what it missed is remembered (in memory) and brought to it by `repair`, and
what was not remembered, as after a restart, is found by `scrub`.

**Reading.** Stores are asked in order, those that failed lately last. Bytes are held against the
CID: a copy that is damaged, missing, breaks off or lets wait is passed over for the next one, and
repaired. A blob over `HELD_BYTES` is on its way to the reader before its hash is known; if it turns
out wrong, the last piece is withheld, the read fails, and the next one starts with another copy.

**Deleting** takes all stores, or fails: a blob that one store keeps would come back by repair.
What was uploaded to one store alone is in the database and so is never an orphan; repair brings it
to the others. All stores list in the same order, so their lists are merged in constant memory.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Protocol, runtime_checkable

from pds.blobstore.base import (
    BlobKey,
    BlobMissing,
    BlobStat,
    BlobStore,
    StagedBlob,
    StoreProperties,
    place,
)
from pds.blobstore.copying import CopyState, check_copy, copy_blob
from pds.blobstore.spool import Spool, Spooled, StagedSpooled
from pds.errors import Corrupt, StoreError, Unavailable
from pds.protocol.cid import Cid

HELD_BYTES: Final = 1 << 20
"""Blobs up to this size are checked whole before their first byte is handed out."""
FIRST_REST_S: Final = 1.0
LONGEST_REST_S: Final = 30.0
PATIENCE_S: Final = 5.0
"""How long one store may keep a reader waiting while another is left to ask: a server that hangs
would otherwise hold every reader until its timeouts and retries are over."""
MAX_BEHIND: Final = 100_000
"""Blobs that are remembered for repair, about 10 MB; the scrub finds the rest."""
SCRUBS_AT_ONCE: Final = 8

_log: Final = logging.getLogger(__name__)


@runtime_checkable
class TakesSpooled(Protocol):
    """A store that uploads straight from the spool."""

    async def put(self, aid: int, spooled: Spooled) -> None:
        """Upload what is spooled."""


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What was found of one blob in each store, and which stores have been given a good copy."""

    key: BlobKey
    states: tuple[CopyState, ...]
    healed: tuple[int, ...]

    @property
    def is_sound(self) -> bool:
        """Whether every store has a good copy now."""
        return all(
            state is CopyState.GOOD or number in self.healed
            for number, state in enumerate(self.states)
        )

    @property
    def is_lost(self) -> bool:
        """Whether all stores answered and none has a good copy."""
        return not {CopyState.GOOD, CopyState.UNREACHABLE} & set(self.states)


@dataclass(slots=True, eq=False)
class _Member:
    store: BlobStore
    rest_s: float = 0.0
    rests_until_s: float = 0.0
    damaged: set[BlobKey] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.store.properties.name


class ReplicatedBlobStore:
    """Several stores as one. Spec: XRPC-80, XRPC-84"""

    def __init__(
        self,
        stores: Sequence[BlobStore],
        spool: Spool,
        *,
        quorum: int,
        monotonic_s: Callable[[], float] | None = None,
    ) -> None:
        if not 1 <= quorum <= len(stores):
            raise ValueError("the quorum is between 1 and the number of stores")
        self._members = tuple(_Member(store) for store in stores)
        self._spool = spool
        self._quorum = quorum
        self._now_s = monotonic_s or (lambda: asyncio.get_running_loop().time())
        self._behind: dict[BlobKey, None] = {}
        self._under_way: dict[BlobKey, set[asyncio.Task[None]]] = {}

    @property
    def properties(self) -> StoreProperties:
        """Durable when each answer stands for a durable copy."""
        names = " + ".join(member.name for member in self._members)
        return StoreProperties(names, all(m.store.properties.is_durable for m in self._members))

    @property
    def stores(self) -> tuple[BlobStore, ...]:
        """The stores, in the order they are asked."""
        return tuple(member.store for member in self._members)

    @property
    def behind_count(self) -> int:
        """How many blobs wait for repair."""
        return len(self._behind)

    @asynccontextmanager
    async def stage(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[StagedBlob]:
        """Take a stream in once for all stores."""
        async with self._spool.take(chunks) as spooled:
            yield StagedSpooled(spooled, self.put)

    async def put(self, aid: int, spooled: Spooled) -> None:
        """Store in all, answer for `quorum`. Raises: Unavailable."""
        key = BlobKey(aid, spooled.cid)
        awake = [member for member in self._members if not self._rests(member)]
        resting = [member for member in self._members if self._rests(member)]
        if resting:
            self._note_behind(key)
        stored, problem = 0, ""
        for members in (awake, resting):
            tasks = {self._launch(key, self._put_one(m, aid, spooled), spooled) for m in members}
            while tasks and stored < self._quorum:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                stored += sum(task.exception() is None for task in done)
                problem = next((str(e) for task in done if (e := task.exception())), problem)
            if stored >= self._quorum:
                return
        raise Unavailable(f"{stored} of {self._quorum} stores took the blob: {problem}")

    async def _put_one(self, member: _Member, aid: int, spooled: Spooled) -> None:
        key = BlobKey(aid, spooled.cid)
        try:
            if isinstance(member.store, TakesSpooled):
                await member.store.put(aid, spooled)
            else:
                async with member.store.stage(spooled.chunks()) as staged:
                    await staged.store(aid)
        except StoreError as error:
            self._note_failure(member, error)
            self._note_behind(key)
            raise
        self._note_success(member)
        member.damaged.discard(key)

    async def open(
        self, key: BlobKey, *, start: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the bytes of a blob or a part of it, from whichever store has them."""
        is_whole = start == 0 and length is None
        at, problem, is_behind = start, None, False
        members = self._readable(key)
        for member in members:
            rest = None if length is None else start + length - at
            chunks = member.store.open(key, start=at, length=rest)
            if member is not members[-1]:
                chunks = _impatient(chunks)
            # What a failed store sent of a whole blob was never hashed to its end.
            is_checked = is_whole and at == 0
            try:
                async for chunk in _checked(key, chunks) if is_checked else chunks:
                    at += len(chunk)
                    yield chunk
            except (StoreError, ValueError) as error:
                problem = _worse(problem, error)
                self._note_read_failure(member, key, error)
                is_behind |= isinstance(error, BlobMissing | Corrupt)
                if isinstance(error, Corrupt) and at > start:
                    self._note_behind(key)
                    raise Unavailable(f"a copy of blob {key.cid} is damaged; ask again") from error
                continue
            self._note_success(member)
            if is_behind:
                self._note_behind(key)
            return
        raise problem or BlobMissing(key)

    async def stat(self, key: BlobKey) -> BlobStat | None:
        """Return size and time of a blob as the first store that has it knows them, or None."""
        failure: StoreError | None = None
        members = self._readable(key)
        for member in members:
            try:
                async with asyncio.timeout(None if member is members[-1] else PATIENCE_S):
                    found = await member.store.stat(key)
            except (StoreError, TimeoutError) as error:
                failure = error if isinstance(error, StoreError) else Unavailable("too slow")
                self._note_failure(member, failure)
                continue
            if found is not None:
                return found
        if failure is not None:
            raise failure
        return None

    async def delete(self, key: BlobKey) -> bool:
        """Remove a blob from all stores. Raises: Unavailable when one did not do it."""
        self._behind.pop(key, None)
        while tasks := self._under_way.get(key):
            await asyncio.wait(tasks)
        answers = await asyncio.gather(
            *(member.store.delete(key) for member in self._members), return_exceptions=True
        )
        for member, answer in zip(self._members, answers, strict=True):
            if isinstance(answer, StoreError):
                self._note_failure(member, answer)
            member.damaged.discard(key)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return any(answers)

    async def list(self, aid: int | None = None) -> AsyncIterator[tuple[BlobKey, BlobStat]]:
        """Yield the blobs that any store has. Raises: Unavailable when one does not answer."""
        async for key, found in self._merged(aid, unreachable=None):
            yield key, next(iter(found.values()))

    async def presign(self, key: BlobKey) -> str | None:
        """Return a URL into the first store that gives one and has the blob."""
        for member in self._readable(key):
            with suppress(StoreError):
                url = await member.store.presign(key)
                if url is not None and await member.store.stat(key) is not None:
                    return url
        return None

    async def ping(self) -> None:
        """Raise when fewer stores than the quorum can take a blob."""
        asked = (member.store.ping() for member in self._members)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        well = sum(answer is None for answer in answers)
        for member, answer in zip(self._members, answers, strict=True):
            if answer is None:
                self._note_success(member)
        if well < self._quorum:
            problems = "; ".join(str(answer) for answer in answers if answer is not None)
            raise Unavailable(f"{well} of {self._quorum} stores answer: {problems}")

    async def close(self) -> None:
        """Finish uploads that are under way, then close all stores."""
        while self._under_way:
            await asyncio.wait([task for tasks in self._under_way.values() for task in tasks])
        await asyncio.gather(*(member.store.close() for member in self._members))

    async def repair(self) -> int:
        """Bring blobs that a store missed to it; returns how many are whole again.

        Those that cannot be helped now stay for the next time, and so do all while a store that
        failed does not answer: copies would be read again and again for nothing.
        """
        for member in self._members:
            if member.rest_s:
                try:
                    await member.store.ping()
                except StoreError as error:
                    self._note_failure(member, error)
                    return 0
                self._note_success(member)
        healed = 0
        for key in [*self._behind]:
            if key not in self._behind:
                continue  # deleted meanwhile
            del self._behind[key]
            result = await self.heal(key)
            healed += bool(result.healed)
            if CopyState.UNREACHABLE in result.states:
                self._note_behind(key)
        return healed

    async def scrub(
        self, *, verify: bool = True, unreachable: set[str] | None = None
    ) -> AsyncIterator[Scrubbed]:
        """Compare all stores, blob by blob, and give each what it lacks.

        With `verify` every copy is read and hashed; without, only what is missing is found. Names
        of stores that do not answer are added to `unreachable`.
        """
        names = set() if unreachable is None else unreachable
        batch: list[Coroutine[Any, Any, Scrubbed]] = []
        async for key, found in self._merged(None, unreachable=names):
            is_everywhere = len(found) == len(self._members)
            sizes = {stat.size for stat in found.values()}
            if is_everywhere and len(sizes) == 1 and not verify:
                yield Scrubbed(key, (CopyState.GOOD,) * len(found), ())
                continue
            batch.append(self.heal(key))
            if len(batch) == SCRUBS_AT_ONCE:
                for result in await asyncio.gather(*batch):
                    yield result
                batch.clear()
        for result in await asyncio.gather(*batch):
            yield result

    async def heal(self, key: BlobKey) -> Scrubbed:
        """Check every copy of a blob, and replace bad ones by a good one."""
        states = await asyncio.gather(*(check_copy(member.store, key) for member in self._members))
        good = next(
            (m for m, state in zip(self._members, states, strict=True) if state == "good"), None
        )
        healed: list[int] = []
        for number, (member, state) in enumerate(zip(self._members, states, strict=True)):
            if good is None or state not in (CopyState.MISSING, CopyState.DAMAGED):
                continue
            try:
                await copy_blob(good.store, member.store, key)
            except StoreError as error:
                self._note_failure(member, error)
                self._note_behind(key)
                continue
            member.damaged.discard(key)
            healed.append(number)
            _log.info("blob.healed", extra=_fields(key, member, state))
        return Scrubbed(key, tuple(states), tuple(healed))

    def _launch(
        self, key: BlobKey, work: Coroutine[Any, Any, None], spooled: Spooled
    ) -> "asyncio.Task[None]":
        """Start an upload that outlives its caller, and that a deletion of the blob waits for."""
        task = asyncio.ensure_future(work)
        self._under_way.setdefault(key, set()).add(task)
        spooled.hold()

        def end(done: "asyncio.Task[None]") -> None:
            spooled.release()
            tasks = self._under_way[key]
            tasks.discard(done)
            if not tasks:
                del self._under_way[key]
            if not done.cancelled():
                done.exception()  # seen: failures were noted where they happened

        task.add_done_callback(end)
        return task

    def _readable(self, key: BlobKey) -> Sequence[_Member]:
        """All members, those with a damaged copy or at rest last."""
        return sorted(self._members, key=lambda m: (key in m.damaged, self._rests(m)))

    def _rests(self, member: _Member) -> bool:
        return self._now_s() < member.rests_until_s

    def _note_success(self, member: _Member) -> None:
        if member.rest_s:
            _log.info("blobstore.back", extra={"store": member.name})
        member.rest_s = member.rests_until_s = 0.0

    def _note_failure(self, member: _Member, error: Exception) -> None:
        if self._rests(member):
            return  # one of many requests that failed together
        member.rest_s = min(max(member.rest_s * 2, FIRST_REST_S), LONGEST_REST_S)
        member.rests_until_s = self._now_s() + member.rest_s
        _log.warning("blobstore.failed", extra={"store": member.name, "reason": str(error)})

    def _note_read_failure(self, member: _Member, key: BlobKey, error: Exception) -> None:
        if isinstance(error, Corrupt):
            _log.error("blob.copy_damaged", extra=_fields(key, member, CopyState.DAMAGED))
            if len(member.damaged) < MAX_BEHIND:
                member.damaged.add(key)
        elif isinstance(error, StoreError) and not isinstance(error, BlobMissing):
            self._note_failure(member, error)

    def _note_behind(self, key: BlobKey) -> None:
        if len(self._behind) < MAX_BEHIND:
            self._behind[key] = None

    async def _merged(
        self, aid: int | None, *, unreachable: set[str] | None
    ) -> AsyncIterator[tuple[BlobKey, dict[int, BlobStat]]]:
        """Yield each blob once, with what every store that has it knows of it."""
        lists = {number: member.store.list(aid) for number, member in enumerate(self._members)}
        heads: dict[int, tuple[BlobKey, BlobStat]] = {}

        async def advance(number: int) -> None:
            heads.pop(number, None)
            try:
                heads[number] = await anext(lists[number])
            except StopAsyncIteration:
                return
            except StoreError as error:
                member = self._members[number]
                self._note_failure(member, error)
                if unreachable is None:
                    raise
                unreachable.add(member.name)

        await asyncio.gather(*(advance(number) for number in lists))
        while heads:
            first = min(heads.values(), key=lambda head: place(head[0]))[0]
            found = {number: head[1] for number, head in sorted(heads.items()) if head[0] == first}
            yield first, found
            await asyncio.gather(*(advance(number) for number in found))


async def _checked(key: BlobKey, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces of a whole blob; raise Corrupt instead of the last if the hash is wrong."""
    digest = sha256()
    held: list[bytes] = []
    size = 0
    async for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        held.append(chunk)
        while size > HELD_BYTES and len(held) > 1:
            yield held.pop(0)
    if Cid.of_raw_digest(digest.digest()) != key.cid:
        raise Corrupt(f"blob {key.cid} of account {key.aid} is damaged")
    for chunk in held:
        yield chunk


async def _impatient(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces; raise Unavailable when the next one takes too long."""
    while True:
        try:
            async with asyncio.timeout(PATIENCE_S):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise Unavailable("too slow") from error
        yield chunk


def _worse(
    known: StoreError | ValueError | None, error: StoreError | ValueError
) -> StoreError | ValueError:
    """The one of two problems that says more: "could not find out" comes before "has none"."""
    return error if known is None or isinstance(known, BlobMissing) else known


def _fields(key: BlobKey, member: _Member, state: CopyState) -> dict[str, object]:
    return {"aid": key.aid, "cid": str(key.cid), "store": member.name, "state": state.value}
