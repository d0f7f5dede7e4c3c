"""Moves whose nodes and other hosts die at random points, again and again, and arrive all the same.

A node of the new host lives for a random number of points (a call of a service or of the other
host, before it is made and after it had its effect, a chunk of a stream) and is then gone without a
word; another takes over. The old host fails in the same way: before a call, after it, in the middle
of an answer. Until the account is active at the new host, it must be active at the old one.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pds.errors import RequestError, Unreachable
from pds.services.migration import Migration
from pds.services.migration_state import STEPS, Step
from pds.services.migration_work import Given
from pds.store.accounts import AccountStatus
from pds.store.moves import get_last_move
from tests.scenarios.moving import (
    NEW_PASSWORD,
    OWN_KEY,
    Hosts,
    login,
    make_traveller,
    no_sleep,
    plc_code,
    request_for,
    signing_key,
    snapshot,
    state_of,
    two_hosts,
)
from tests.support_client import Person

SEEDS = tuple(range(int(os.environ.get("PDS_TEST_MOVE_SEEDS", "2"))))
MAX_LIVES = 400
MORTAL = (
    "engine",
    "accounts",
    "admin_accounts",
    "blobs",
    "identities",
    "lifecycle",
    "oauth",
    "plc",
    "plc_operations",
    "preferences",
    "repo_imports",
    "service_tokens",
    "sessions",
)


class Killed(BaseException):
    """The process is gone."""


class Fate:
    """When a node dies, and when the other host fails it."""

    def __init__(self, dice: random.Random, *, points: int) -> None:
        self._dice = dice
        self._left = points
        self.is_dead = False
        self.failures = 0

    def point(self) -> None:
        """One more point that this node has lived to see."""
        self._left -= 1
        if self.is_dead or self._left <= 0:
            self.is_dead = True
            raise Killed

    def remote_point(self) -> None:
        """A point at which the other host may fail too."""
        self.point()
        if self._dice.random() < 0.06:
            self.failures += 1
            raise Unreachable("the old host was killed")


class Mortal:
    """A service of which every call may be the last, before it is made or after."""

    def __init__(self, inner: Any, fate: Fate) -> None:
        self._inner = inner
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **options: Any) -> Any:
            self._fate.point()
            result = await method(*args, **options)
            self._fate.point()
            return result

        return call


class MortalHttp:
    """The way to the old host."""

    def __init__(self, inner: Any, fate: Fate) -> None:
        self._inner = inner
        self._fate = fate

    @asynccontextmanager
    async def request(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        self._fate.remote_point()
        async with self._inner.request(*args, **options) as answer:
            self._fate.remote_point()
            yield _MortalAnswer(answer, self._fate)


class _MortalAnswer:
    def __init__(self, inner: Any, fate: Fate) -> None:
        self._inner = inner
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def iter_chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner.iter_chunks():
            yield chunk[: len(chunk) // 2]
            self._fate.remote_point()
            yield chunk[len(chunk) // 2 :]


class Run:
    """One move through many lives of its node."""

    def __init__(self, hosts: Hosts, person: Person, seed: int) -> None:
        self.hosts = hosts
        self.person = person
        self.dice = random.Random(seed)
        self.deaths: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.wishes = 0
        self.most_points = 30

    async def step(self) -> str:
        row = await self.hosts.new.server.engine.read("test", get_last_move, self.person.did)
        return Step.OPEN.value if row is None else row.step

    async def run(self) -> dict[str, Any]:
        for life in range(MAX_LIVES):
            fate = Fate(self.dice, points=self.dice.randint(1, self.most_points))
            done = await self._live(self._node(fate, life))
            at = await self.step()
            self.deaths[at] += fate.is_dead
            self.failures[at] += fate.failures
            await self._check_source()
            if done is not None:
                return done
        raise AssertionError(f"not done after {MAX_LIVES} lives: {self.deaths}")

    def _node(self, fate: Fate, life: int) -> Migration:
        parts = self.hosts.migration.parts
        mortal: dict[str, Any] = {name: Mortal(getattr(parts, name), fate) for name in MORTAL}
        http: Any = MortalHttp(parts.http, fate)
        parts = replace(parts, **mortal, http=http, sleep=no_sleep)
        return Migration(replace(parts, node=f"life-{life}", is_alone=True))

    async def _live(self, node: Migration) -> dict[str, Any] | None:
        """Do what an owner would until the node dies; return the move if it is done."""
        try:
            while True:
                view = await self._look()
                if view is not None and view["status"] == "done":
                    return view
                try:
                    await self._act(node, view)
                except RequestError as error:
                    known = ("other_host_unreachable", "login_needed", "busy")
                    assert error.name in known, error  # noqa: PT017
                for task in list(node._tasks.values()):
                    await asyncio.wait([task])
                    if not task.cancelled() and task.exception() is not None:
                        raise Killed
        except* Killed:
            pass
        return None

    async def _look(self) -> dict[str, Any] | None:
        try:
            return await self.hosts.migration.get(self.person.did)
        except RequestError:
            return None

    async def _act(self, node: Migration, view: dict[str, Any] | None) -> None:
        did = self.person.did
        problem = {} if view is None else view.get("problem") or {}
        if view is None or view["step"] == "open" or problem.get("code") == "login_needed":
            await node.start_in(request_for(self.person))
        elif view["status"] == "running":
            await node.resume()
        elif problem["code"] in ("plc_token_needed", "plc_token_refused"):
            await node.go_on(did, Given(requests_token=True))
            await node.go_on(did, Given(plc_token=await self._new_code()))
        else:
            await node.go_on(did)

    async def _new_code(self) -> str:
        """Read the code of the newest mail."""
        await self.hosts.old.server.services.account_mails.settle()
        return await plc_code(self.hosts.old)

    async def _check_source(self) -> None:
        """ACC-50: the account is active at one of the hosts at any time."""
        old = await self.hosts.old.server.services.accounts.lookup(self.person.did)
        new = await self.hosts.new.server.services.accounts.lookup(self.person.did)
        assert old is not None
        if new is None or new.status is not AccountStatus.ACTIVE:
            assert old.status is AccountStatus.ACTIVE


async def test_a_move_survives_the_death_of_either_side_at_any_point(tmp_path: Path) -> None:
    deaths: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    async with two_hosts(tmp_path) as hosts:
        for seed in SEEDS:
            person = await make_traveller(hosts, f"alice{seed}", blobs=8)
            key = signing_key(hosts, person.did)
            before = await snapshot(person.client, person.did, key)
            run = Run(hosts, person, seed)
            view = await run.run()
            deaths += run.deaths
            failures += run.failures
            assert view["status"] == "done"
            client = await login(hosts.new, person.did, NEW_PASSWORD)
            after = await snapshot(client, person.did, signing_key(hosts, person.did))
            assert after == before
            ours = hosts.migration.parts.rotation_signer.public_key.did_key
            keys = state_of(hosts.plc, person.did).rotation_keys
            assert keys == (OWN_KEY.public_key.did_key, ours)
    print(f"deaths {dict(deaths)}, failures of the old host {dict(failures)}")
    assert sum(deaths.values()) >= 10 * len(SEEDS)
    if len(SEEDS) >= 24:
        assert all(deaths[step] >= 5 for step in STEPS if step != Step.WATCH), deaths
