"""The engine's contract, third part: after the commit, when a caller goes, and at the end."""

import asyncio
import threading

import pytest

from pds.errors import Unavailable
from pds.store.base import QueueLimits, ThreadedEngine
from pds.store.engine import CommittedGroup, HealthStatus, Txn
from pds.store.replay import WriteLog, compare
from tests.fakes.clock import FakeClock
from tests.suites.engine_base import EngineFixtures
from tests.suites.engine_jobs import (
    Gate,
    Refused,
    count,
    get,
    put,
    put_with_event,
    queue_jobs,
    settle,
    wait_until_writable,
)
from tests.suites.engines import Backend


class DeliverySuite(EngineFixtures):
    """Hooks, answers, cancelling, closing."""

    async def test_hooks_run_in_order_before_the_answers(self, engine: ThreadedEngine) -> None:
        order: list[str] = []
        engine.add_event_hook(lambda events: order.extend(e.frame.decode()[0] for e in events))
        engine.add_event_hook(lambda _events: order.append("second hook"))

        def job(txn: Txn, name: str) -> None:
            put_with_event(txn, name)
            txn.on_commit(lambda: order.append(f"commit {name}"))

        async def call(name: str) -> None:
            await engine.transact("put", job, name, accounts=(1,))
            order.append(f"answer {name}")

        gate = Gate()
        held = await gate.hold(engine)
        calls = [asyncio.create_task(call(name)) for name in "xy"]
        await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(held, *calls)
        assert order == ["x", "y", "second hook", "commit x", "commit y", "answer x", "answer y"]

    async def test_a_hook_that_raises_stops_no_other(
        self, engine: ThreadedEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[str] = []

        def broken(*_args: object) -> None:
            raise Refused

        engine.add_event_hook(broken)
        engine.add_event_hook(lambda events: seen.append(f"{len(events)} events"))

        def job(txn: Txn) -> str:
            put_with_event(txn, "a")
            txn.on_commit(broken)
            txn.on_commit(lambda: seen.append("own hook"))
            return "answer"

        assert await engine.transact("put", job) == "answer"
        assert seen == ["1 events", "own hook"]
        logged = [record.msg for record in caplog.records]
        assert "store.event_hook_failed" in logged
        assert "store.commit_hook_failed" in logged

    async def test_a_cancelled_caller_does_not_cancel_a_started_job(
        self, engine: ThreadedEngine
    ) -> None:
        entered, go_on, hook_ran = threading.Event(), threading.Event(), asyncio.Event()

        def job(txn: Txn) -> None:
            put_with_event(txn, "a")
            txn.on_commit(hook_ran.set)
            entered.set()
            assert go_on.wait(60)

        task = asyncio.create_task(engine.transact("put", job))
        assert await asyncio.to_thread(entered.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await asyncio.wait_for(hook_ran.wait(), 60)
        assert await engine.read("get", get, "a") == b"v"

    async def test_a_job_cancelled_while_it_waits_is_not_run(self, engine: ThreadedEngine) -> None:
        gate = Gate()
        held = await gate.hold(engine)
        lost, kept = await queue_jobs(
            engine, lambda txn: put(txn, "lost"), lambda txn: put(txn, "kept")
        )
        lost.cancel()
        await asyncio.sleep(0)
        gate.opened.set()
        await settle(held, kept)
        assert await engine.read("count", count) == 1
        assert engine.health().waiting_jobs == 0

    async def test_groups_are_made_durable_before_anybody_is_told(
        self, backend: Backend, clock: FakeClock
    ) -> None:
        order: list[str] = []

        def make_durable(group: CommittedGroup) -> None:
            order.append(f"durable {len(group.events)}")

        engine = backend.engine(clock, make_durable=make_durable)
        engine.add_event_hook(lambda _events: order.append("event"))
        await engine.start()
        await engine.transact("put", put_with_event, "a")
        order.append("answer")
        await engine.close()
        assert order == ["durable 1", "event", "answer"]

    async def test_a_group_that_is_not_durable_enough_is_not_acknowledged(
        self, backend: Backend, clock: FakeClock
    ) -> None:
        """And nothing else is written until it is: then it is logged and the world is told."""
        fail = True
        hooks: list[str] = []
        log = WriteLog()

        def make_durable(_group: CommittedGroup) -> None:
            if fail:
                raise Refused

        engine = backend.engine(
            clock,
            recorder=log,
            make_durable=make_durable,
            limits=QueueLimits(reopen_interval_s=0.01),
        )
        engine.add_event_hook(lambda _events: hooks.append("event"))
        await engine.start()

        def job(txn: Txn) -> None:
            put_with_event(txn, "a")
            txn.on_commit(lambda: hooks.append("own"))

        with pytest.raises(Unavailable):
            await engine.transact("put", job)
        assert hooks == ["own"]  # caches must forget; the world is not told yet
        fail = False
        await wait_until_writable(engine)
        assert hooks == ["own", "event"]
        await engine.close()
        assert compare(backend.dump(), backend.dump_replayed(log.groups)) == []

    async def test_closing_finishes_what_waits_and_refuses_the_rest(
        self, backend: Backend, clock: FakeClock
    ) -> None:
        engine = backend.engine(clock)
        with pytest.raises(Unavailable):
            await engine.transact("too early", count)
        assert engine.health().status is HealthStatus.FAILED
        await engine.start()
        assert engine.health().status is HealthStatus.OK
        gate = Gate()
        held = await gate.hold(engine)
        tasks = await queue_jobs(engine, *[lambda txn, n=n: put(txn, f"f{n}") for n in range(20)])
        bulk = await queue_jobs(engine, lambda txn: put(txn, "bulk"), bulk=True)
        reads = [asyncio.create_task(engine.read("count", count)) for _ in range(20)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await engine.transact("too late", count)
        with pytest.raises(Unavailable):
            await engine.read("too late", count)
        gate.opened.set()
        await closing
        results = await settle(held, *tasks, *bulk)
        assert results == [None, *(f"f{n}" for n in range(20)), "bulk"]
        assert set(await settle(*reads)) <= set(range(22))  # answered, whatever they saw
        await engine.close()
        assert len(backend.dump()["fact"]) == 21
