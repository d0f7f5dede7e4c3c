"""Work that nobody asked for: first looks at clocks and relays, then everything that is timed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from pds.app.foundation import Foundation
from pds.blobstore.replicated import ReplicatedBlobStore
from pds.errors import RemoteError, StoreError, Unavailable
from pds.log import get_logger
from pds.net.xrpc_client import XrpcClient
from pds.services import Services
from pds.services.blobs import Blobs
from pds.services.event_retention import EventRetention
from pds.services.identity_store import SavedIdentities
from pds.store.clock import get_accepted_us
from pds.store.nodes import forget_old_nodes
from pds.store.repos import delete_garbage, list_garbage

US_PER_S: Final = 1_000_000
HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
DAY_US: Final = DAY_S * US_PER_S
SCRUB_PERIOD_S: Final = 7 * DAY_S
SCRUB_FIRST_AFTER_S: Final = 6 * HOUR_S
SCRUB_PAUSE_S: Final = 0.05
"""Between two blobs, so that reading all of them disturbs nobody."""
ASK_TIMEOUT_S: Final = 3.0
RETRY_S: Final = 0.5
START_PATIENCE_S: Final = 0.5
"""How long the port waits for clocks and relays elsewhere: health must answer within a second."""

HOLD_READERS_S: Final = ASK_TIMEOUT_S
"""How long the firehose takes no readers while relays have not said which number they have seen."""

_log = get_logger(__name__)


@asynccontextmanager
async def background(base: Foundation, services: Services) -> AsyncIterator[None]:
    """Run everything that nobody asked for, until the block ends."""
    services.firehose.hold()
    first = asyncio.create_task(_look_around(base))
    first.add_done_callback(lambda _: services.firehose.release())
    await asyncio.wait([first], timeout=START_PATIENCE_S)
    if not first.done():
        loop = asyncio.get_running_loop()
        loop.call_later(HOLD_READERS_S, services.firehose.release)
    retention = EventRetention(
        engine=base.engine, clock=base.clock, window_s=base.config.federation.backfill_s
    )
    failure: BaseException | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(services.firehose.run()),
            group.create_task(services.crawlers.run()),
            group.create_task(_every(300, "events.retention", retention.sweep)),
            group.create_task(_every(300, "blobs.collect", services.blobs.collect)),
            group.create_task(
                _every(DAY_S, "blobs.orphans", services.blobs.sweep_orphans, first_after_s=HOUR_S)
            ),
            group.create_task(
                _every(
                    SCRUB_PERIOD_S,
                    "blobs.scrub",
                    partial(_scrub, services.blobs),
                    first_after_s=SCRUB_FIRST_AFTER_S,
                )
            ),
            *(group.create_task(work) for work in _blob_repairs(base)),
            group.create_task(_every(60, "repos.garbage", partial(_delete_old_repos, base))),
            group.create_task(_every(3600, "identity.sweep", partial(_forget_identities, base))),
            group.create_task(_every(5, "clock.check", base.clock.check, first_after_s=5)),
            group.create_task(_every(30, "accounts.recover", services.accounts.recover)),
            group.create_task(_every(DAY_S, "nodes.forget", partial(_forget_nodes, base))),
            group.create_task(_every(600, "sessions.sweep", services.sessions.sweep)),
        ]
        try:
            yield
        except BaseException as error:
            failure = error  # Not the group's: it would come out wrapped.
        for task in (*tasks, first):
            task.cancel()
        await asyncio.gather(first, return_exceptions=True)
    if failure is not None:
        raise failure


def _blob_repairs(base: Foundation) -> Iterator[Coroutine[Any, Any, None]]:
    """What several blob stores need: soon what they missed, daily a comparison of their lists."""
    store = base.blobstore
    if not isinstance(store, ReplicatedBlobStore):
        return

    async def compare() -> None:
        silent: set[str] = set()
        async for found in store.scrub(verify=False, unreachable=silent):
            if found.is_lost:
                _log.error("blob.lost", aid=found.key.aid, cid=str(found.key.cid))
        if silent:
            _log.warning("blobstore.not_compared", stores=",".join(sorted(silent)))

    yield _every(30, "blobs.repair", store.repair)
    yield _every(DAY_S, "blobs.compare", compare, first_after_s=HOUR_S)


async def _look_around(base: Foundation) -> None:
    """Ask other hosts for the time, and relays for the numbers that they have seen of us."""
    asking = asyncio.create_task(_ask_relays(base))
    try:
        accepted_us = await base.engine.read("clock.accepted", get_accepted_us)
        await base.clock.start(last_seq=base.engine.last_seq, accepted_us=accepted_us)
        for relay, seq in (await asking).items():
            await _rise_above(base, relay, seq)
    except StoreError as error:
        _log.error("start.look_around_failed", exc=error)
    finally:
        asking.cancel()


async def _ask_relays(base: Foundation) -> dict[str, int]:
    """The number that each relay has seen of us, as far as they know one and answer."""
    client = XrpcClient(base.trusted)
    seen: dict[str, int] = {}

    async def ask(relay: str) -> None:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                answer = await client.query(
                    relay,
                    "com.atproto.sync.getHostStatus",
                    {"hostname": base.config.netloc},
                )
        except (RemoteError, TimeoutError) as error:
            # A relay that knows nothing of us, or is silent, has nothing to say about numbers.
            _log.info("relay.status_unknown", relay=relay, reason=type(error).__name__)
            return
        seq = answer.get("seq")
        if isinstance(seq, int):
            seen[relay] = seq

    await asyncio.gather(*(ask(relay) for relay in base.config.federation.crawlers))
    return seen


async def _rise_above(base: Foundation, relay: str, seq: int) -> None:
    """Continue above the number that a relay has seen, once the clock can tell if it may be.

    A database that was restored from an old copy on a machine whose clock is behind would
    otherwise hand out numbers that relays have passed (promise A2, SYNC-13).
    """
    while seq > base.engine.last_seq:
        try:
            if seq > base.clock.now_us() + DAY_US:
                _log.warning("relay.seq_unbelievable", relay=relay, seq=seq)
                return
            await base.engine.raise_seq(seq)
            _log.warning("relay.seq_raised", relay=relay, seq=seq)
        except Unavailable:  # The clock is in doubt, so nothing else gets a number either.
            await asyncio.sleep(RETRY_S)


async def _scrub(blobs: Blobs) -> None:
    """Read all blobs, slowly: what is damaged is logged, and refused from then on (promise A7)."""
    found = dict.fromkeys((True, False), 0)
    async for _, is_sound in blobs.scrub():
        found[is_sound] += 1
        await asyncio.sleep(SCRUB_PAUSE_S)
    _log.info("blobs.scrubbed", sound=found[True], damaged=found[False])


async def _delete_old_repos(base: Foundation) -> None:
    """Delete generations of repos that are no longer live, some hundred rows at a time."""
    for repo_id in await base.engine.read("repos.garbage", list_garbage):
        is_done = False
        while not is_done:
            is_done = await base.engine.transact(
                "repos.garbage", delete_garbage, repo_id, bulk=True
            )


async def _forget_nodes(base: Foundation) -> None:
    """Drop what nodes left behind that are gone."""
    await base.engine.transact("nodes.forget", forget_old_nodes, base.clock.now_us(), bulk=True)


async def _forget_identities(base: Foundation) -> None:
    """Drop saved identities that are too old to be used."""
    age_us = round(base.config.identity.cache_max_s * US_PER_S)
    await SavedIdentities(base.engine).sweep(base.clock.now_us() - age_us)


async def _every(
    period_s: float,
    name: str,
    act: Callable[[], Awaitable[object]],
    *,
    first_after_s: float = 0.0,
) -> None:
    """Do something again and again; one failure does not end it."""
    await asyncio.sleep(first_after_s)
    while True:
        try:
            await act()
        except (StoreError, RemoteError) as error:
            _log.warning("background.failed", job=name, reason=str(error))
        except Exception as error:
            _log.error("background.failed", exc=error, job=name)
        await asyncio.sleep(period_s)
