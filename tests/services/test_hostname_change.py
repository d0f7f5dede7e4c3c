"""A host gets another name: its identities are told, over crashes and whatever the directory does.

`Mover` is what the command line drives the orders with; time here passes only in its sleeps.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pds.cli.hostname import EXIT_LATER, EXIT_OWNERS, EXIT_REFUSED, Mover, exit_code
from pds.errors import RequestError, Unreachable
from pds.protocol.plc import (
    PlcService,
    did_for_genesis,
    make_tombstone,
    make_update,
    sign_genesis,
    sign_operation,
)
from pds.protocol.syntax import Did, Handle
from pds.services.admin_api import AdminApi
from pds.services.audit import Order
from pds.services.handles import HandlePolicy, HandleSettings
from pds.services.hostname_change import HostnameChange, HostnameChangeSettings, Outcome
from pds.services.identity_acts import ACT_KIND
from pds.store.accounts import insert_account
from pds.store.audit import list_audit
from pds.store.engine import Txn
from pds.store.journal import insert_journal
from tests.fakes.plc import Mood
from tests.services.creation_host import (
    OPERATOR_KEY,
    PUBLIC_URL,
    ROTATION,
    USER_KEY,
    Crash,
    CrashPoint,
)
from tests.services.identity_host import IdentityHost, identity_host

NEW_URL = "https://new.test"
INTERVAL_S = 2.0
SERVER_KEY = ROTATION.public_key.did_key


class Time:
    """Passes only while somebody sleeps, and lets things happen meanwhile."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.on_sleep: Callable[[float], None] = lambda _s: None

    def read(self) -> float:
        return self.now_s

    async def sleep(self, pause_s: float) -> None:
        self.now_s += pause_s
        self.on_sleep(pause_s)
        await asyncio.sleep(0)


class Movers:
    """The service, and what the command does with it, over one host."""

    def __init__(self, host: IdentityHost) -> None:
        self.host = host
        self.time = Time()
        self.answers: dict[str, str | None] = {
            NEW_URL: "did:web:new.test",
            PUBLIC_URL: "did:web:new.test",
        }
        self.build()

    def build(self, *, former: tuple[str, ...] = (PUBLIC_URL,), exclusive: bool = True) -> None:
        policy = HandleSettings(
            service_domains=(".new.test",), former_domains=(".pds.test",), dev=True
        )
        self.change = HostnameChange(
            engine=self.host.engine,
            plc=self.host.identity_plc,
            resolver=self.host.resolver,
            journal=self.host.journal if exclusive else self.host.make_journal(exclusive=False),
            handles=HandlePolicy(policy),
            rotation_signer=ROTATION,
            ask_did=self.ask_did,
            public_url=NEW_URL,
            former_urls=former,
            service_did="did:web:new.test",
            settings=HostnameChangeSettings(per_hour=round(3600 / INTERVAL_S)),
            monotonic=self.time.read,
            sleep=self.time.sleep,
        )
        self.api = AdminApi(SimpleNamespace(hostname_change=self.change))  # type: ignore[arg-type]

    async def ask_did(self, url: str) -> str | None:
        if url not in self.answers:
            raise Unreachable(f"{url} does not answer")
        return self.answers[url]

    async def call(self, name: str, fields: Any) -> dict[str, Any]:
        return await self.api.call(name, fields, actor="cli:tests")

    async def move(self, *dids: str, patience_s: float = 600, **fields: Any) -> dict[str, Any]:
        mover = Mover(self, fields, patience_s=patience_s, sleep=self.time.sleep)
        await mover.run(dids)
        return mover.report()

    async def settle(self, count: int, **parts: Any) -> list[Did]:
        """Have so many accounts here: rows and identities, without repos."""
        dids = []
        for number in range(count):
            handle = Handle(f"person{number}.pds.test")
            dids.append(await self.add(handle, **parts))
        return dids

    async def add(self, handle: str, *, rotation_keys: tuple[str, ...] = (SERVER_KEY,)) -> Did:
        genesis = sign_genesis(
            ROTATION,
            rotation_keys=[*rotation_keys],
            signing_key=OPERATOR_KEY,
            handle=Handle(handle),
            pds_endpoint=PUBLIC_URL,
        )
        did = did_for_genesis(genesis)
        self.host.plc.directory.submit(did, genesis.to_json())
        await self.insert(did, handle)
        return did

    async def insert(self, did: Did, handle: str) -> None:
        def insert(txn: Txn) -> None:
            insert_account(
                txn, did=did, handle=Handle(handle), email=None, password_hash=None, now_us=1
            )

        await self.host.real_engine.transact("test.insert", insert)

    def publish(self, did: Did, **parts: Any) -> None:
        """Change an identity at the directory, behind our back."""
        log = self.host.plc.directory.get_log(did)
        assert log is not None
        assert log.last is not None
        fields = make_update(log.last, **parts) if parts else make_tombstone(log.last)
        self.host.plc.directory.submit(did, sign_operation(fields, ROTATION).to_json())

    def endpoint(self, did: Did) -> str:
        return self.host.state(did).services["atproto_pds"].endpoint

    async def assert_moved_once(self, dids: list[Did]) -> None:
        """Each identity has one more operation and one event, and nothing is left over."""
        for did in dids:
            assert self.endpoint(did) == NEW_URL
            assert self.host.operations_of(did) == 2
        told = [frame.payload["did"] for frame in await self.host.frames()]
        assert sorted(told) == sorted(dids)
        assert {frame.type for frame in await self.host.frames()} == {"#identity"}
        assert await self.host.count("journal") == 0


@pytest.fixture
async def movers(tmp_path: Path) -> AsyncIterator[Movers]:
    async with identity_host(tmp_path) as host:
        yield Movers(host)


def outcomes(report: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in report["counts"].items() if count}


def entry_of(report: dict[str, Any], did: Did) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in report["accounts"] if each["did"] == did)
    return found


async def test_a_hundred_accounts_move_evenly_and_nobody_twice(movers: Movers) -> None:
    """ID-60, SYNC-34: one operation and one event each, no faster than the settings say."""
    movers.host.plc_timeout_s = 30.0  # A busy machine is no directory that fails.
    movers.host.restart()
    movers.build()
    dids = await movers.settle(100)
    report = await movers.move()
    assert outcomes(report) == {"moved": 100}
    assert (report["from"], report["to"], report["total"]) == ([PUBLIC_URL], NEW_URL, 100)
    assert exit_code(report) == 0
    assert 99 * INTERVAL_S <= movers.time.now_s < 110 * INTERVAL_S
    await movers.assert_moved_once(dids)
    again = await movers.move()
    assert outcomes(again) == {"current": 100}
    await movers.assert_moved_once(dids)
    rows = await movers.host.real_engine.read("test.audit", list_audit)
    assert {row.act for row in rows} == {"account.set-endpoint"}
    assert {row.actor for row in rows} == {"cli:tests"}


@pytest.mark.parametrize(
    ("when", "what"),
    [
        ("before", "identity.reserve"),
        ("after", "identity.reserve"),
        ("before", "identity.record"),
        ("after", "identity.record"),
        ("before", "plc.submit"),
        ("after", "plc.submit"),
        ("after", "identity.confirm"),
    ],
)
@pytest.mark.parametrize("handles", [False, True])
async def test_whenever_the_process_dies_a_rerun_completes(
    movers: Movers, when: str, what: str, handles: bool
) -> None:
    host = movers.host
    dids = await movers.settle(3)
    await movers.move(dids[0], handles=handles)
    host.crash = CrashPoint(when, what)
    with pytest.raises(Crash):
        await movers.move(handles=handles)
    host.restart()
    movers.build()
    report = await movers.move(handles=handles)
    assert set(outcomes(report)) <= {"moved", "current"}
    await movers.assert_moved_once(dids)
    for number, did in enumerate(dids):
        domain = "new" if handles else "pds"
        assert (await host.account(did)).handle == f"person{number}.{domain}.test"
        assert host.state(did).also_known_as == (f"at://person{number}.{domain}.test",)


@pytest.mark.parametrize(
    "mood",
    [Mood.DOWN, Mood.SLOW, Mood.FAULTY, Mood.FORGETFUL, Mood.RATE_LIMITED, Mood.BABBLING],
)
async def test_a_directory_that_fails_in_the_middle_only_costs_time(
    movers: Movers, mood: Mood
) -> None:
    host = movers.host
    dids = await movers.settle(8)
    host.plc.delay_s = 0.4
    sent = 0

    async def turn_bad() -> None:
        nonlocal sent
        sent += 1
        if sent == 3:
            host.plc.write_mood = mood
            host.plc.read_mood = Mood.KIND if mood is Mood.SLOW else mood

    def heal(pause_s: float) -> None:
        if pause_s >= 15:
            host.plc.mood = Mood.KIND

    host.base.after_submit = turn_bad
    movers.time.on_sleep = heal
    report = await movers.move()
    assert sent >= 3
    # What was sent without an answer is found done.
    assert report["counts"]["moved"] + report["counts"]["current"] == 8
    assert exit_code(report) == 0
    await movers.assert_moved_once(dids)


async def test_who_waits_in_vain_is_told_and_can_go_on_later(movers: Movers) -> None:
    dids = await movers.settle(5)
    movers.host.plc.mood = Mood.FAULTY
    report = await movers.move(patience_s=60)
    assert report["accounts"] == []
    assert exit_code(report) == EXIT_LATER
    movers.host.plc.mood = Mood.RATE_LIMITED
    report = await movers.move(patience_s=60)
    assert outcomes(report) == {"later": 5}
    assert "Too many operations" in entry_of(report, dids[0])["reason"]
    assert exit_code(report) == EXIT_LATER
    movers.host.plc.mood = Mood.KIND
    assert outcomes(await movers.move()) == {"moved": 5}
    await movers.assert_moved_once(dids)


async def test_a_rehearsal_says_what_would_be_and_changes_nothing(movers: Movers) -> None:
    dids = await movers.settle(3)
    report = await movers.move(handles=True, dryRun=True)
    assert outcomes(report) == {"moved": 3}
    assert entry_of(report, dids[2])["newHandle"] == "person2.new.test"
    assert await movers.host.frames() == []
    assert [movers.host.operations_of(did) for did in dids] == [1, 1, 1]
    assert await movers.host.real_engine.read("test.audit", list_audit) == []
    assert await movers.host.count("journal") == 0


async def test_handles_follow_where_they_can(movers: Movers) -> None:
    """ID-25: same label under the new domain; what cannot be had holds up nothing else."""
    host = movers.host
    alice = await movers.add("alice.pds.test")
    taken = await movers.add("bob.pds.test")
    await movers.insert(Did("did:plc:" + "a" * 24), "bob.new.test")
    long = await movers.add("a-very-long-label-of-old.pds.test")
    own = await movers.add("carol.example.com")
    other = await movers.add("dan.pds.test")
    movers.publish(other, also_known_as=["at://dan.example.com"])
    await movers.move(alice, taken, long, own, other)
    report = await movers.move(alice, taken, long, own, other, handles=True)
    assert entry_of(report, alice)["newHandle"] == "alice.new.test"
    assert (await host.account(alice)).handle == "alice.new.test"
    assert host.state(alice).also_known_as == ("at://alice.new.test",)
    last = (await host.frames())[-1]
    assert (last.type, last.payload["handle"]) == ("#identity", "alice.new.test")
    for did, why in (
        (taken, "Handle already taken"),
        (long, "Handle too long"),
        (other, "The document names at://dan.example.com first"),
    ):
        entry = entry_of(report, did)
        assert why in entry["conflict"]
        assert entry["outcome"] == Outcome.CURRENT
        assert movers.endpoint(did) == NEW_URL
        assert (await host.account(did)).handle == entry["handle"]
    assert "conflict" not in entry_of(report, own)
    assert exit_code(report) == EXIT_REFUSED


async def test_a_handle_that_is_lost_in_the_last_moment_does_not_hold_up_the_move(
    movers: Movers,
) -> None:
    alice = await movers.add("alice.pds.test")
    real = movers.change._journal.settle

    async def settle(did: Did) -> bool:
        def take(txn: Txn) -> None:
            insert_journal(
                txn, kind="handle", subject="alice.new.test", state=b"did:plc:x", now_us=1
            )

        movers.time.on_sleep = lambda _s: None
        is_free = await real(did)
        original = movers.change._take_turn

        async def take_turn(*arguments: Any) -> Any:
            await movers.host.real_engine.transact("test.take", take)
            return await original(*arguments)

        movers.change._take_turn = take_turn  # type: ignore[method-assign]
        return is_free

    movers.change._journal.settle = settle  # type: ignore[method-assign]
    report = await movers.move(handles=True)
    assert "already taken" in entry_of(report, alice)["conflict"]
    assert movers.endpoint(alice) == NEW_URL
    assert (await movers.host.account(alice)).handle == "alice.pds.test"


async def test_what_is_not_ours_to_change_is_listed_with_what_to_do(movers: Movers) -> None:
    """ID-26, ID-71: identities without our key, did:web, and those of other hosts."""
    host = movers.host
    keeper = await movers.add("keeper.pds.test")
    movers.publish(keeper, rotation_keys=[USER_KEY])
    gone = await movers.add("gone.pds.test")
    movers.publish(gone, services={"atproto_pds": PlcService("X", "https://other.test")})
    ended = await movers.add("ended.pds.test")
    movers.publish(ended)
    unknown = Did("did:plc:" + "b" * 24)
    await movers.insert(unknown, "unknown.pds.test")
    web = Did("did:web:web.example.com")
    await movers.insert(web, "web.pds.test")
    document = {
        "id": web,
        "alsoKnownAs": ["at://web.pds.test"],
        "service": [
            {
                "id": "#atproto_pds",
                "type": "AtprotoPersonalDataServer",
                "serviceEndpoint": PUBLIC_URL,
            }
        ],
    }
    host.resolver.documents[web] = document
    report = await movers.move()
    assert outcomes(report) == {"elsewhere": 2, "owner": 2, "refused": 1}
    assert exit_code(report) == EXIT_REFUSED
    assert NEW_URL in entry_of(report, keeper)["todo"]
    assert NEW_URL in entry_of(report, web)["todo"]
    assert "other.test" in entry_of(report, gone)["reason"]
    assert "ended" in entry_of(report, ended)["reason"]
    assert exit_code(await movers.move(web, keeper)) == EXIT_OWNERS
    document["service"][0]["serviceEndpoint"] = NEW_URL  # type: ignore[index]
    host.resolver.documents[web] = document
    assert entry_of(await movers.move(web), web)["outcome"] == Outcome.CURRENT
    report = await movers.move(web, keeper, handles=True)
    assert "at://web.new.test" in entry_of(report, web)["todo"]
    assert "at://keeper.new.test" in entry_of(report, keeper)["todo"]
    document["alsoKnownAs"] = ["at://web.new.test"]
    host.resolver.documents[web] = document
    report = await movers.move(web, handles=True)
    assert (await host.account(web)).handle == "web.new.test"
    assert await host.count("journal") == 0


async def test_other_services_aliases_and_keys_of_an_identity_stay(movers: Movers) -> None:
    """ID-56: an operation states the whole identity."""
    alice = await movers.add("alice.pds.test", rotation_keys=(USER_KEY, SERVER_KEY))
    before = movers.host.state(alice)
    services = {**before.services, "atproto_labeler": PlcService("L", "https://label.test")}
    aliases = ["at://alice.pds.test", "https://alice.example"]
    movers.publish(alice, services=services, also_known_as=aliases)
    await movers.move(handles=True)
    after = movers.host.state(alice)
    assert after.rotation_keys == (USER_KEY, SERVER_KEY)
    assert after.verification_methods == before.verification_methods
    assert after.services["atproto_labeler"] == services["atproto_labeler"]
    assert after.also_known_as == ("at://alice.new.test", "https://alice.example")


async def test_an_identity_with_another_change_under_way_comes_later(movers: Movers) -> None:
    """Another node is at work on it: an identity changes one thing at a time."""
    dids = await movers.settle(2)

    def begin(txn: Txn) -> int:
        return insert_journal(
            txn,
            kind=ACT_KIND,
            subject=dids[0],
            state=b"{}",
            now_us=movers.host.clock.now_us(),
        )

    await movers.host.real_engine.transact("test.begin", begin)
    movers.build(exclusive=False)
    report = await movers.move(patience_s=30)
    assert outcomes(report) == {"moved": 1, "later": 1}
    assert movers.host.operations_of(dids[0]) == 1


async def test_hosts_of_others_that_are_away_do_not_hold_up_the_rest(movers: Movers) -> None:
    """Many a did:web without an answer says nothing about the directory."""
    for number in range(4):
        await movers.insert(Did(f"did:web:away{number}.example"), f"away{number}.pds.test")
    dids = await movers.settle(2)

    async def resolve_did(did: Did, *, refresh: bool = False) -> Any:
        raise Unreachable(f"no answer from the host of {did}")

    movers.host.resolver.resolve_did = resolve_did
    report = await movers.move(patience_s=60)
    assert outcomes(report) == {"moved": 2, "later": 4}
    await movers.assert_moved_once(dids)


async def test_names_that_do_not_lead_here_are_found(movers: Movers) -> None:
    order = Order("cli:tests")
    assert [reach.problem for reach in await movers.change.check()] == [None, None]
    movers.answers = {NEW_URL: "did:web:somebody.test"}
    problems = [reach.problem or "" for reach in await movers.change.check()]
    assert "the server there is did:web:somebody.test" in problems[0]
    assert "does not answer" in problems[1]
    movers.build(former=())
    for call in (movers.change.check(), movers.change.page(order)):
        with pytest.raises(RequestError, match="PDS_FORMER_HOSTNAMES"):
            await call
    with pytest.raises(RequestError, match="cursor"):
        await movers.call("hostname.move", {"cursor": "x"})


async def test_a_server_that_is_started_again_is_waited_for(movers: Movers) -> None:
    dids = await movers.settle(2)
    real = movers.api.call
    calls = 0

    async def call(name: str, values: Any, *, actor: str) -> Any:
        nonlocal calls
        calls += 1
        if calls in (1, 3):
            raise Unreachable("no server")
        return await real(name, {**values, "limit": 1}, actor=actor)

    movers.api.call = call  # type: ignore[method-assign]
    assert outcomes(await movers.move()) == {"moved": 2}
    await movers.assert_moved_once(dids)
    calls = 0

    async def never(name: str, values: Any, *, actor: str) -> Any:
        raise Unreachable("no server")

    movers.api.call = never  # type: ignore[method-assign]
    with pytest.raises(Unreachable):
        await movers.move(patience_s=60)


def test_a_handle_under_a_former_domain_stays_ours_and_is_given_to_nobody() -> None:
    settings = HandleSettings(
        service_domains=(".pds.new.test",), former_domains=(".pds.test", ".new.test"), dev=True
    )
    policy = HandlePolicy(settings)
    old = Handle("alice.pds.test")
    assert policy.is_ours(old)
    with pytest.raises(RequestError) as caught:
        policy.check_ours(old, allow_reserved=True)
    assert caught.value.name == "UnsupportedDomain"
    assert policy.find_successor(old) == "alice.pds.new.test"
    assert policy.find_successor(Handle("alice.pds.new.test")) is None
    assert policy.find_successor(Handle("alice.example.com")) is None
    assert not HandlePolicy(replace(settings, former_domains=())).is_ours(old)
