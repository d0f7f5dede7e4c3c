"""A day of a whole server in some seconds: everything that is timed happens when it should.

The server goes by a clock that the test moves (`tests/fakes/virtual_time.ServerTime`): in steps of
five minutes before each time that somebody looks at, so what is due happens within its period and a
step, and in larger ones otherwise. Each story below waits for the times that it names; all are told
at once, over the same day. Some things take longer than a day: their stories go on until the last
refresh token has run out.

Spec: (XRPC-23, XRPC-25, XRPC-43, ACC-6, ACC-15, ACC-22, ACC-26, ACC-36, ID-4, SYNC-60)
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pds.app.background import DAY_S, HOUR_S
from pds.app.options import TimeSource
from pds.blobstore.base import BlobKey
from pds.config import Config
from pds.protocol.cid import parse_cid
from pds.protocol.jwt import decode_jwt
from pds.protocol.keys import make_signer
from pds.protocol.plc import PlcService, make_update, parse_operation, sign_operation
from pds.services.account_states import ERASE_KIND
from pds.services.sessions import TokenPair
from pds.store.jobs import JobRow, list_jobs
from tests.fakes.clock import FakeMachine
from tests.fakes.virtual_time import ServerTime
from tests.scenarios.conftest import Host, host_in
from tests.support_client import Client, Person, XrpcError, sign_up
from tests.support_postgres import is_chosen

SERVER = "com.atproto.server."
MINUTE_S = 60
STEP_S = 5 * MINUTE_S
IDLE_STEP_S = HOUR_S / 2
LONG_STEP_S = 5 * DAY_S
LEAD_S = 15 * MINUTE_S
DAY_HOURS = 27
TEMPORARY_S = 6 * HOUR_S
WINDOW_S = 12 * HOUR_S
INVITE_INTERVAL_S = 2 * HOUR_S
PNG = b"\x89PNG\r\n\x1a\n"

Story = Callable[["Day"], Coroutine[Any, Any, None]]


@dataclass
class Relay:
    """Notes when it was asked to crawl."""

    machine: FakeMachine
    url: str = ""
    asked_at: list[int] = field(default_factory=list)

    async def request_crawl(self, _request: web.Request) -> web.Response:
        self.asked_at.append(self.machine.wall_us)
        return web.Response()


@dataclass
class Day:
    """A server, its clock, and the stories that wait for their times."""

    host: Host
    time: ServerTime
    relay: Relay
    start_us: int
    people: dict[str, Person]
    _waiting: list[tuple[int, asyncio.Future[None]]] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def client(self) -> Client:
        return self.host.client

    @property
    def now_us(self) -> int:
        return self.time.machine.wall_us

    async def until(self, hours: int, minutes: float = 0, *, days: int = 0) -> None:
        """Wait for a time after the start."""
        passed_s = days * DAY_S + hours * HOUR_S + minutes * MINUTE_S
        await self.until_us(self.start_us + round(passed_s * 1_000_000))

    async def until_us(self, at_us: int) -> None:
        """Wait for an instant."""
        assert at_us >= self.now_us, "that time is over"
        reached = asyncio.get_running_loop().create_future()
        self._waiting.append((at_us, reached))
        self._changed.set()
        await reached

    async def tell(self, *stories: Story) -> None:
        """Let all stories happen."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(story(self), name=story.__name__) for story in stories]
            for task in tasks:
                task.add_done_callback(lambda _: self._changed.set())
            while not all(task.done() for task in tasks):
                if len(self._waiting) < sum(not task.done() for task in tasks):
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                at_us = min(at_us for at_us, _ in self._waiting)
                await self._pass_until(at_us)
                for each_us, reached in self._waiting:
                    if each_us <= at_us:
                        reached.set_result(None)
                self._waiting = [entry for entry in self._waiting if entry[0] > at_us]

    async def _pass_until(self, at_us: int) -> None:
        """Let time pass: in large steps as long as nobody looks, in small ones before it."""
        hours = (at_us - self.start_us) / HOUR_S / 1_000_000
        idle_us = at_us - LEAD_S * 1_000_000
        if idle_us > self.now_us:
            step_s = IDLE_STEP_S if hours <= DAY_HOURS else LONG_STEP_S
            await self.time.pass_until(idle_us, step_s=step_s)
        await self.time.pass_until(at_us, step_s=STEP_S)

    async def count(self, sql: str, *parameters: object) -> int:
        """Return the one number that a query gives."""
        rows = await self.host.server.engine.read(
            "day.count", lambda txn: list(txn.read(sql, parameters))
        )
        return int(rows[0][0])

    async def aid_of(self, person: Person) -> int:
        account = await self.host.server.services.accounts.lookup(person.did)
        assert account is not None
        return account.aid

    async def has_bytes(self, aid: int, blob: dict[str, Any]) -> bool:
        """Whether the blob store holds a blob, whatever the database says."""
        key = BlobKey(aid, parse_cid(blob["ref"]["$link"]))
        return await self.host.server.services.blobs._store.stat(key) is not None

    def code_for(self, person: Person) -> str:
        """Return the last code that was mailed to somebody."""
        name = person.handle.partition(".")[0]
        for received in reversed(self.host.mailbox.received()):
            found = re.search(r"\b[A-Z2-7]{5}-[A-Z2-7]{5}\b", received.mail.text)
            if received.mail.to == f"{name}@example.test" and found:
                return found.group()
        raise AssertionError("no code was mailed")

    async def login(self, person: Person) -> Any:
        return await self.client.post(
            SERVER + "createSession", identifier=person.did, password=person.password
        )

    async def open_session(self, person: Person) -> TokenPair:
        """Open a session without the third of a second that a login takes."""
        sessions = self.host.server.services.sessions
        account = await self.host.server.services.accounts.lookup(person.did)
        assert account is not None
        row = await self.host.server.engine.transact(
            "day.session", sessions.open_session, account, sessions.prepare()
        )
        tokens = (await sessions.view_opened(account, row)).tokens
        assert tokens is not None
        return tokens

    def change_identity(self, person: Person, **parts: Any) -> None:
        """Change an identity behind the server's back, as its owner may."""
        log = self.host.plc.get_log(person.did)
        assert log is not None
        last = parse_operation(log.entries[-1].operation.to_json())
        key = self.host.server.config.secrets.plc_rotation_key or ""
        signer = make_signer("k256", bytes.fromhex(key))
        self.host.plc.submit(
            person.did, sign_operation(make_update(last, **parts), signer).to_json()
        )


@asynccontextmanager
async def running_relay(machine: FakeMachine) -> AsyncIterator[Relay]:
    relay = Relay(machine)
    app = web.Application()
    app.router.add_post("/xrpc/com.atproto.sync.requestCrawl", relay.request_crawl)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    relay.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield relay
    finally:
        await runner.cleanup()


@asynccontextmanager
async def day_in(folder: Path) -> AsyncIterator[Day]:
    machine = FakeMachine(wall_us=time.time_ns() // 1000)  # Dates of other hosts are real.
    server_time = ServerTime(machine)

    async with running_relay(machine) as relay:

        def change(config: Config) -> Config:
            return replace(
                config,
                blobs=replace(config.blobs, temporary_s=TEMPORARY_S),
                federation=replace(config.federation, backfill_s=WINDOW_S, crawlers=(relay.url,)),
                rates=replace(config.rates, enabled=True),
                sign_up=replace(
                    config.sign_up, invite_required=True, invite_interval_s=INVITE_INTERVAL_S
                ),
            )

        now = TimeSource(read=machine.read, sleep=server_time.sleep)
        async with host_in(folder, change=change, now=now) as host:
            server_time.parties = len(host.server.schedule.jobs) + 1  # The one that tells relays.
            operator = Order(host)
            people = {
                name: await sign_up(
                    host.client, f"{name}.test", inviteCode=await operator.invite_code()
                )
                for name in ("alice", "bob", "carol", "dora", "erik", "frank")
            }
            yield Day(host, server_time, relay, machine.wall_us, people)


@dataclass
class Order:
    """What the operator asks."""

    host: Host

    async def invite_code(self) -> str:
        services = self.host.server.services
        made = await services.invites.create(code_count=1, use_count=1, for_accounts=[], order=None)
        return made[0].codes[0]


async def refusal(call: Any) -> tuple[int, str]:
    with pytest.raises(XrpcError) as caught:
        await call
    return caught.value.status, caught.value.name


async def access_tokens_last_two_hours(day: Day) -> None:
    """XRPC-23"""
    alice = day.people["alice"]
    await day.until(1, 59)
    await alice.client.get(SERVER + "getSession")
    await day.until(2, 1)
    assert await refusal(alice.client.get(SERVER + "getSession")) == (400, "ExpiredToken")


async def used_refresh_tokens_last_two_hours_more(day: Day) -> None:
    """XRPC-25"""
    bob = day.people["bob"]
    old = day.client.with_token(bob.refresh_token)
    count = "SELECT count(*) FROM session WHERE aid = ? AND next_token_id IS NOT NULL"
    aid = await day.aid_of(bob)
    await day.until(1)
    first = await old.post(SERVER + "refreshSession")
    assert await day.count(count, aid) == 1
    await day.until(2, 59)
    again = await old.post(SERVER + "refreshSession")
    successors = {decode_jwt(each["refreshJwt"]).claims["jti"] for each in (first, again)}
    assert len(successors) == 1
    assert await day.count(count, aid) == 1
    await day.until(3, 1)
    assert await refusal(old.post(SERVER + "refreshSession")) == (400, "ExpiredToken")
    await day.until(3, 16)  # The sweep of every ten minutes.
    assert await day.count(count, aid) == 0
    await day.client.with_token(again["refreshJwt"]).post(SERVER + "refreshSession")


async def mailed_codes_last_a_quarter_of_an_hour(day: Day) -> None:
    """ACC-36"""
    carol = day.people["carol"]
    await day.until(1)
    await carol.client.post(SERVER + "requestEmailConfirmation")
    code = day.code_for(carol)
    await day.until(1, 14)
    await carol.client.post(SERVER + "confirmEmail", email="carol@example.test", token=code)
    await carol.client.post(SERVER + "requestAccountDelete")
    code = day.code_for(carol)
    await day.until(1, 30)
    late = day.client.post(
        SERVER + "deleteAccount", did=carol.did, password=carol.password, token=code
    )
    assert await refusal(late) == (400, "ExpiredToken")
    codes = "SELECT count(*) FROM mail_token WHERE aid = ?"
    aid = await day.aid_of(carol)
    await day.until(25, 28)  # An expired one is kept for a day, so that it can be called so.
    assert await day.count(codes, aid) == 1
    await day.until(26, 35)
    assert await day.count(codes, aid) == 0


async def blobs_that_nobody_needs_are_deleted(day: Day) -> None:
    """XRPC-86: uploads after their time, and what no record refers to any more."""
    dora = day.people["dora"]
    aid = await day.aid_of(dora)
    blobs = "SELECT count(*) FROM blob WHERE aid = ?"
    await day.until(0, 10)
    unused = await dora.client.upload(PNG + b"unused", "image/png")
    used = await dora.client.upload(PNG + b"used", "image/png")
    images = [{"alt": "", "image": used}]
    post = await dora.post("see", embed={"$type": "app.bsky.embed.images", "images": images})
    await day.until(1)
    await dora.client.post(
        "com.atproto.repo.deleteRecord",
        repo=dora.did,
        collection="app.bsky.feed.post",
        rkey=post["uri"].rpartition("/")[2],
    )
    await day.until(1, 11)
    assert not await day.has_bytes(aid, used)
    await day.until(6, 9)
    assert await day.count(blobs, aid) == 1
    assert await day.has_bytes(aid, unused)
    await day.until(6, 21)
    assert await day.count(blobs, aid) == 0
    assert not await day.has_bytes(aid, unused)


async def accounts_are_deleted_when_their_owners_said(day: Day) -> None:
    """ACC-22: on the minute asked, but not before a day has passed."""
    erik, frank = day.people["erik"], day.people["frank"]
    await day.until(0, 30)
    for person, hours in ((erik, 25), (frank, 1)):
        at = datetime.fromtimestamp(day.start_us / 1_000_000 + hours * HOUR_S, UTC)
        await person.client.post(SERVER + "deactivateAccount", deleteAfter=at.isoformat())

    async def status(person: Person) -> Any:
        answer = await day.client.get("com.atproto.sync.getRepoStatus", did=person.did)
        return answer.get("status")

    await day.until(24, 29)
    assert [await status(person) for person in (erik, frank)] == ["deactivated"] * 2
    await day.until(24, 46)
    assert await refusal(status(frank)) == (400, "RepoNotFound")
    await day.until(24, 59)
    assert await status(erik) == "deactivated"
    await day.until(25, 16)
    assert await refusal(status(erik)) == (400, "RepoNotFound")
    await day.until(25, 30)
    erasing = "SELECT count(*) FROM journal WHERE kind = ?"
    assert await day.count(erasing, ERASE_KIND) == 0


async def events_are_kept_for_their_window(day: Day) -> None:
    """SYNC-13: twelve hours here."""
    before = "SELECT count(*) FROM event WHERE at <= ?"
    opened = await day.count(before, day.start_us)
    assert opened >= 4 * len(day.people)
    await day.until(8)
    tokens = await day.open_session(day.people["alice"])
    alice = replace(day.people["alice"], client=day.client.with_token(tokens.access))
    await alice.post("kept")
    eight_us = day.now_us
    await day.until(11, 59)
    assert await day.count(before, day.start_us) == opened
    await day.until(12, 11)
    assert await day.count(before, day.start_us) == 0
    assert await day.count(before, eight_us) > 0
    await day.until(20, 11)
    assert await day.count(before, eight_us) == 0


async def used_tokens_are_forgotten_when_they_have_expired(day: Day) -> None:
    """XRPC-43"""
    used = "SELECT count(*) FROM used_token"
    await day.until(3)
    config = day.host.server.config
    upload = "com.atproto.repo.uploadBlob"
    token = await day.host.server.services.service_tokens.mint(
        day.people["bob"].did, aud=config.service_did, lxm=upload, life_s=30 * MINUTE_S
    )
    await day.client.with_token(token).upload(PNG, "image/png")
    await day.until(3, 29)
    assert await day.count(used) == 1
    await day.until(3, 46)
    assert await day.count(used) == 0


async def counts_are_forgotten_when_their_window_is_over(day: Day) -> None:
    """Limits of an hour and of a day."""
    of_window = "SELECT count(*) FROM rate_count WHERE expires_at = ?"
    for hours in (2, 3):  # Not in the last minutes of a day.
        await day.until(hours)
        await day.login(day.people["frank"])
        await day.until(hours, 6)
        ends_us = await day.count("SELECT max(expires_at) FROM rate_count")
        if ends_us > day.now_us + 20 * MINUTE_S * 1_000_000:
            break
    await day.until_us(ends_us - MINUTE_S * 1_000_000)
    assert await day.count(of_window, ends_us) > 0
    await day.until_us(ends_us + (STEP_S + 6 * MINUTE_S) * 1_000_000)
    assert await day.count(of_window, ends_us) == 0


async def invites_are_earned_by_the_interval(day: Day) -> None:
    """ACC-26: one every two hours, at most five open."""
    for hours, minutes, expected in ((1, 58, 0), (2, 1, 1), (3, 59, 1), (4, 1, 2), (23, 0, 5)):
        await day.until(hours, minutes)
        client = day.client.with_token((await day.open_session(day.people["alice"])).access)
        listed = await client.get(SERVER + "getAccountInviteCodes")
        assert len(listed["codes"]) == expected


async def identities_are_looked_at_again(day: Day) -> None:
    """ACC-6, ID-4: what two looks find, hours apart, has its consequence."""
    moved, renamed = day.people["carol"], day.people["dora"]
    identities = "SELECT count(*) FROM event WHERE aid = ? AND kind = 'identity' AND at > ?"
    aid = await day.aid_of(renamed)

    async def status() -> Any:
        return await day.client.get("com.atproto.sync.getRepoStatus", did=moved.did)

    await day.until(1)
    service = PlcService("AtprotoPersonalDataServer", "https://other.example.com")
    day.change_identity(moved, services={"atproto_pds": service})
    day.change_identity(renamed, also_known_as=["at://renamed.example.com"])
    await day.until(12, 9)
    assert (await status())["active"]
    assert await day.count(identities, aid, day.start_us) == 0
    await day.until(12, 50)
    assert (await status())["status"] == "deactivated"
    assert await day.count(identities, aid, day.start_us) == 1
    day.change_identity(renamed, also_known_as=["at://dora.test"])
    await day.until(19, 30)
    assert await day.count(identities, aid, day.start_us) == 2
    healthy = day.people["alice"].did
    assert (await day.client.get("com.atproto.sync.getRepoStatus", did=healthy))["active"]


async def relays_are_told(day: Day) -> None:
    """SYNC-60: of news at most every twenty minutes, and ever more rarely while nobody reads."""
    bob = day.people["bob"]
    await day.until(0, 1)
    asked = day.relay.asked_at
    assert len(asked) == 1
    await bob.post("news")
    await day.until(0, 19)
    assert len(asked) == 1
    await day.until(0, 26)
    assert len(asked) == 2
    await day.until(23)
    minutes = [(later - sooner) / 60e6 for sooner, later in pairwise(asked)]
    assert min(minutes) >= 20
    assert max(minutes) <= 6 * 60 + 2 * IDLE_STEP_S / MINUTE_S
    assert 6 <= len(asked) <= 40


async def every_job_has_its_turns(day: Day) -> None:
    """`pds jobs` shows it: nothing failed, nothing is late."""

    async def rows() -> list[JobRow]:
        return await day.host.server.engine.read("day.jobs", list_jobs)

    timed = {job.name: job for job in day.host.server.schedule.jobs if not job.per_node}
    late_us = 2 * STEP_S * 1_000_000
    for hours in (2, 7, 24):
        await day.until(hours, 2)
        listed = {row.name: row for row in await rows()}
        assert set(listed) == set(timed)
        for name, row in listed.items():
            assert row.failures == 0, (name, row.result)
            assert day.now_us - late_us < row.next_at <= day.now_us + row.period_us, name
            if day.now_us < day.start_us + timed[name].first_after_us:
                assert row.finished_at is None, name
            else:
                assert row.finished_at is not None, name
                assert row.result, name
                assert day.now_us - row.finished_at <= row.period_us + late_us, name


async def reserved_keys_last_a_week(day: Day) -> None:
    """ACC-15"""
    keys = "SELECT count(*) FROM reserved_key"
    await day.until(0, 15)
    await day.client.post(SERVER + "reserveSigningKey", did="did:web:mover.example.com")
    await day.until(23, 0, days=6)
    assert await day.count(keys) == 1
    await day.until(2, 0, days=7)
    assert await day.count(keys) == 0


async def refresh_tokens_last_ninety_days(day: Day) -> None:
    """XRPC-23"""
    bob = day.people["bob"]
    await day.until(4)
    first, second = [await day.open_session(bob) for _ in range(2)]
    await day.until(3, 55, days=90)
    await day.client.with_token(first.refresh).post(SERVER + "refreshSession")
    await day.until(4, 5, days=90)
    late = day.client.with_token(second.refresh).post(SERVER + "refreshSession")
    assert await refusal(late) == (400, "ExpiredToken")
    await day.until(5, 0, days=90)
    old = "SELECT count(*) FROM session WHERE expires_at <= ?"
    assert await day.count(old, day.now_us - HOUR_S * 1_000_000) == 0


@pytest.mark.skipif(is_chosen(), reason="nodes that share a database go by their machines' clocks")
async def test_everything_that_is_timed_happens_when_it_should(tmp_path: Path) -> None:
    async with day_in(tmp_path) as day:
        await day.tell(
            access_tokens_last_two_hours,
            used_refresh_tokens_last_two_hours_more,
            mailed_codes_last_a_quarter_of_an_hour,
            blobs_that_nobody_needs_are_deleted,
            accounts_are_deleted_when_their_owners_said,
            events_are_kept_for_their_window,
            used_tokens_are_forgotten_when_they_have_expired,
            counts_are_forgotten_when_their_window_is_over,
            invites_are_earned_by_the_interval,
            identities_are_looked_at_again,
            relays_are_told,
            every_job_has_its_turns,
            reserved_keys_last_a_week,
            refresh_tokens_last_ninety_days,
        )
