"""The schedule of background jobs, and the first looks at clocks and relays.

A further job is one line in `build_schedule`:

    schedule.add("things.sweep", services.things.sweep, every_s=600)

It is then done by one node of the host at a time, over restarts, and `pds jobs` shows it. What
`sweep` returns (nothing, a number, counts by name) is noted; what it raises is logged and tried
again. See `pds.services.jobs`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from pds.app.foundation import Foundation, name_node
from pds.blobstore.replicated import ReplicatedBlobStore
from pds.errors import RemoteError, StoreError, Unavailable
from pds.log import get_logger
from pds.net.xrpc_client import XrpcClient
from pds.services import Services
from pds.services.blobs import Blobs
from pds.services.event_retention import EventRetention
from pds.services.identity_store import SavedIdentities
from pds.services.jobs import Schedule
from pds.services.plc_watch import EVERY_S as WATCH_PERIOD_S
from pds.services.rewinds import Rewinds
from pds.services.sweeping import finish_in_steps, sweep_rows
from pds.store.clock import US_PER_S, get_accepted_us
from pds.store.jobs import forget_old_jobs
from pds.store.nodes import forget_old_nodes
from pds.store.repos import delete_garbage, list_garbage
from pds.store.used_tokens import delete_expired_tokens

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
async def background(base: Foundation, services: Services) -> AsyncIterator[Schedule]:
    """Run everything that nobody asked for, until the block ends; what is timed is handed out."""
    services.firehose.hold()
    first = asyncio.create_task(_look_around(base, services.rewinds))
    first.add_done_callback(lambda _: services.firehose.release())
    await asyncio.wait([first], timeout=START_PATIENCE_S)
    if not first.done():
        loop = asyncio.get_running_loop()
        loop.call_later(HOLD_READERS_S, services.firehose.release)
    schedule = build_schedule(base, services)
    failure: BaseException | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(services.firehose.run()),
            group.create_task(services.crawlers.run(base.time.sleep)),
            group.create_task(schedule.run(base.clock, base.time.sleep)),
        ]
        try:
            yield schedule
        except BaseException as error:
            failure = error  # Not the group's: it would come out wrapped.
        for task in (*tasks, first):
            task.cancel()
        await asyncio.gather(first, return_exceptions=True)
    if failure is not None:
        raise failure


def build_schedule(base: Foundation, services: Services) -> Schedule:
    """Collect everything that is timed."""
    retention = EventRetention(
        engine=base.engine, clock=base.clock, window_s=base.config.federation.backfill_s
    )
    schedule = Schedule(engine=base.engine, node=name_node(), is_shared=base.config.data.is_shared)
    schedule.add("clock.check", base.clock.check, every_s=5, first_after_s=5, per_node=True)
    schedule.add("accounts.recover", services.accounts.recover, every_s=30, at_start=True)
    schedule.add("identity.recover", services.identity_journal.recover, every_s=30, at_start=True)
    schedule.add(
        "identity.checks",
        partial(_sweep_now, base, services.identity_checks.recheck),
        every_s=600,
        first_after_s=600,
    )
    lifecycle = services.account_lifecycle
    schedule.add(
        "accounts.overdue", partial(_sweep_now, base, lifecycle.sweep_overdue), every_s=600
    )
    schedule.add("accounts.erase", lifecycle.sweep_deleted, every_s=60)
    schedule.add(
        "keys.reserved", partial(_sweep_now, base, services.reserved_keys.sweep), every_s=HOUR_S
    )
    schedule.add(
        "mail_codes.sweep", partial(_sweep_now, base, services.mail_tokens.sweep), every_s=HOUR_S
    )
    schedule.add("events.retention", retention.sweep, every_s=300)
    schedule.add("crawlers.announce", services.crawlers.sweep, every_s=60)
    keeping = services.keeping
    schedule.add("identity.watch", keeping.plc_watch.sweep, every_s=WATCH_PERIOD_S)
    rounds = keeping.archive_rounds
    if rounds.settings.is_set:
        every_s = max(rounds.settings.every_s, 60)
        schedule.add("archives.write", rounds.sweep, every_s=every_s, first_after_s=600)
    schedule.add("blobs.collect", services.blobs.collect, every_s=300)
    schedule.add("blobs.orphans", services.blobs.sweep_orphans, every_s=DAY_S, first_after_s=HOUR_S)
    schedule.add(
        "blobs.scrub",
        partial(_scrub, services.blobs),
        every_s=SCRUB_PERIOD_S,
        first_after_s=SCRUB_FIRST_AFTER_S,
    )
    _add_blob_repairs(schedule, base)
    schedule.add("moves.resume", services.migration.resume, every_s=10, per_node=True)
    schedule.add("moves.sweep", services.migration.sweep, every_s=DAY_S, first_after_s=HOUR_S)
    schedule.add("repos.restate", services.rewinds.restate, every_s=60)
    schedule.add("repos.imports", services.repo_imports.recover, every_s=60, at_start=True)
    schedule.add("repos.garbage", partial(_delete_old_repos, base), every_s=60)
    schedule.add("identity.sweep", partial(_forget_identities, base), every_s=HOUR_S)
    schedule.add("nodes.forget", partial(_forget_nodes, base), every_s=DAY_S)
    schedule.add("sessions.sweep", services.sessions.sweep, every_s=600)
    rates = services.rate_limits
    schedule.add("limits.share", rates.share, every_s=rates.share_period_s, per_node=True)
    schedule.add("limits.forget", rates.forget_old, every_s=300, per_node=True)
    schedule.add("limits.sweep", rates.sweep, every_s=300)
    schedule.add(
        "lexicons.sweep", partial(_sweep_now, base, services.lexicons.sweep), every_s=HOUR_S
    )
    schedule.add("tokens.sweep", partial(_forget_used_tokens, base), every_s=600)
    return schedule


async def _sweep_now(base: Foundation, sweep: Callable[[int], Awaitable[int]]) -> int:
    """Sweep by the clock that is believed."""
    return await sweep(base.clock.now_us())


def _add_blob_repairs(schedule: Schedule, base: Foundation) -> None:
    """What several blob stores need: soon what they missed, daily a comparison of their lists."""
    store = base.blobstore
    if not isinstance(store, ReplicatedBlobStore):
        return

    async def compare() -> str:
        silent: set[str] = set()
        lost = 0
        async for found in store.scrub(verify=False, unreachable=silent):
            if found.is_lost:
                lost += 1
                _log.error("blob.lost", aid=found.key.aid, cid=str(found.key.cid))
        if silent:
            _log.warning("blobstore.not_compared", stores=",".join(sorted(silent)))
        return f"{lost} lost" + "".join(f", {name} did not answer" for name in sorted(silent))

    # Each node remembers by itself what its own writes have missed.
    schedule.add("blobs.repair", store.repair, every_s=30, per_node=True)
    schedule.add("blobs.compare", compare, every_s=DAY_S, first_after_s=HOUR_S)


async def _look_around(base: Foundation, rewinds: Rewinds) -> None:
    """Ask other hosts for the time, and relays for the numbers that they have seen of us."""
    asking = asyncio.create_task(_ask_relays(base))
    opened_seq = base.engine.last_seq
    try:
        accepted_us = await base.engine.read("clock.accepted", get_accepted_us)
        await base.clock.start(last_seq=base.engine.last_seq, accepted_us=accepted_us)
        for relay, seq in (await asking).items():
            if seq > opened_seq:
                await _rise_above(base, rewinds, relay, seen_seq=seq, opened_seq=opened_seq)
    except StoreError as error:
        _log.error("start.look_around_failed", exc=error)
    finally:
        asking.cancel()


async def _ask_relays(base: Foundation) -> dict[str, int]:
    """The highest number that each relay has seen of us, under whatever name, if it answers."""
    client = XrpcClient(base.trusted)
    seen: dict[str, int] = {}

    async def ask(relay: str, hostname: str) -> None:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                answer = await client.query(
                    relay,
                    "com.atproto.sync.getHostStatus",
                    {"hostname": hostname},
                )
        except (RemoteError, TimeoutError) as error:
            # A relay that knows nothing of us, or is silent, has nothing to say about numbers.
            _log.info("relay.status_unknown", relay=relay, reason=type(error).__name__)
            return
        seq = answer.get("seq")
        if isinstance(seq, int):
            seen[relay] = max(seq, seen.get(relay, 0))

    names = (base.config.netloc, *base.config.host.former_hostnames)
    relays = base.config.federation.crawlers
    await asyncio.gather(*(ask(relay, name) for relay in relays for name in names))
    return seen


async def _rise_above(
    base: Foundation, rewinds: Rewinds, relay: str, *, seen_seq: int, opened_seq: int
) -> None:
    """Continue above the number that a relay has seen, once the clock can tell if it may be.

    A database that was restored from an old copy on a machine whose clock is behind would
    otherwise hand out numbers that relays have passed (promise A2, SYNC-13). That it is old is
    noted as well, so that its repos are stated again (promise A3).
    """
    while True:
        try:
            if seen_seq > base.clock.now_us() + DAY_US:
                _log.warning("relay.seq_unbelievable", relay=relay, seq=seen_seq)
                return
            await rewinds.note(seen_seq, opened_seq=opened_seq)
            if seen_seq > base.engine.last_seq:
                await base.engine.raise_seq(seen_seq)
                _log.warning("relay.seq_raised", relay=relay, seq=seen_seq)
            return
        except Unavailable:  # The clock is in doubt, so nothing else gets a number either.
            await asyncio.sleep(RETRY_S)


async def _scrub(blobs: Blobs) -> dict[str, int]:
    """Read all blobs, slowly: what is damaged is logged, and refused from then on (promise A7)."""
    found = {"sound": 0, "damaged": 0}
    async for _, is_sound in blobs.scrub():
        found["sound" if is_sound else "damaged"] += 1
        await asyncio.sleep(SCRUB_PAUSE_S)
    _log.info("blobs.scrubbed", **found)
    return found


async def _delete_old_repos(base: Foundation) -> int:
    """Delete generations of repos that are no longer live, some hundred rows at a time."""
    garbage = await base.engine.read("repos.garbage", list_garbage)
    for repo_id in garbage:
        await finish_in_steps(base.engine, "repos.garbage", delete_garbage, repo_id)
    return len(garbage)


async def _forget_nodes(base: Foundation) -> int:
    """Drop what nodes left behind that are gone, and jobs that no version has any more."""
    now_us = base.clock.now_us()
    await base.engine.transact("jobs.forget", forget_old_jobs, now_us, bulk=True)
    return await base.engine.transact("nodes.forget", forget_old_nodes, now_us, bulk=True)


async def _forget_identities(base: Foundation) -> None:
    """Drop saved identities that are too old to be used."""
    age_us = round(base.config.identity.cache_max_s * US_PER_S)
    await SavedIdentities(base.engine).sweep(base.clock.now_us() - age_us)


async def _forget_used_tokens(base: Foundation) -> int:
    """Drop the digests of used tokens that have expired since (XRPC-43)."""
    now_us = base.clock.now_us()
    return await sweep_rows(base.engine, "tokens.sweep", delete_expired_tokens, now_us)
