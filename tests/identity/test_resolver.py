"""The cached resolver: ages, single flight, refresh, persistence (ID-12, ID-35, ID-36)."""

import asyncio
import json

import pytest

from pds.errors import NotResolvable, StoreError, Unreachable
from pds.identity.cache import AnswerCache, CacheTimes, Standing
from pds.identity.errors import (
    DidDeactivated,
    DidNotFound,
    HandleNotFound,
    UnsupportedDidMethod,
)
from pds.protocol.plc import make_tombstone, make_update, sign_operation
from pds.protocol.syntax import Did, parse_did
from tests.fakes.plc import Mood
from tests.identity.conftest import World
from tests.identity.people import make_person

ALICE = make_person("alice")
BOB = make_person("bob")


class MemoryStore:
    """An `IdentityStore` that can fail."""

    def __init__(self) -> None:
        self.saved: dict[str, tuple[bytes, int]] = {}
        self.is_broken = False

    def _check(self) -> None:
        if self.is_broken:
            raise StoreError("broken on purpose")

    async def load(self, subject: str) -> tuple[bytes, int] | None:
        self._check()
        return self.saved.get(subject)

    async def save(self, subject: str, value: bytes, fetched_at_us: int) -> None:
        self._check()
        self.saved[subject] = (value, fetched_at_us)

    async def forget(self, subject: str) -> None:
        self._check()
        self.saved.pop(subject, None)


def register(world: World, *people: object) -> None:
    for person in (ALICE, BOB):
        if person in people:
            world.plc.directory.submit(person.did, person.genesis.to_json())


def reads(world: World, did: Did) -> int:
    return world.plc.requests.count(("GET", f"/{did}"))


async def settle() -> None:
    """Let background lookups over loopback finish."""
    for _ in range(100):
        await asyncio.sleep(0.002)
        running = [task for task in asyncio.all_tasks() if "_look_up" in repr(task.get_coro())]
        if not running:
            return


async def test_an_answer_is_fetched_once_while_fresh(world: World) -> None:
    register(world, ALICE)
    resolver = world.resolver()
    found = [await resolver.resolve_did(ALICE.did) for _ in range(3)]
    assert {document.handle for document in found} == {ALICE.handle}
    assert await resolver.resolve_signing_key(ALICE.did) == ALICE.signing.public_key
    assert reads(world, ALICE.did) == 1


async def test_a_stale_answer_is_served_while_a_new_one_is_fetched_behind_it(world: World) -> None:
    register(world, ALICE)
    resolver = world.resolver()
    await resolver.resolve_did(ALICE.did)
    update = make_update(ALICE.genesis, also_known_as=["at://new.example.com"])
    operation = sign_operation(update, ALICE.rotation)
    world.plc.directory.submit(ALICE.did, operation.to_json())
    world.clock.now += 3599
    assert (await resolver.resolve_did(ALICE.did)).handle == ALICE.handle
    assert reads(world, ALICE.did) == 1
    world.clock.now += 2
    assert (await resolver.resolve_did(ALICE.did)).handle == ALICE.handle
    await settle()
    assert reads(world, ALICE.did) == 2
    assert (await resolver.resolve_did(ALICE.did)).handle == "new.example.com"


async def test_only_a_fresh_document_is_recalled(world: World) -> None:
    register(world, ALICE)
    resolver = world.resolver()
    assert resolver.recall_did(ALICE.did) is None
    document = await resolver.resolve_did(ALICE.did)
    assert resolver.recall_did(ALICE.did) == document
    world.clock.now += 3601
    assert resolver.recall_did(ALICE.did) is None
    assert reads(world, ALICE.did) == 1


async def test_a_bad_answer_is_not_recalled(world: World) -> None:
    resolver = world.resolver()
    with pytest.raises(DidNotFound):
        await resolver.resolve_did(ALICE.did)
    assert resolver.recall_did(ALICE.did) is None


async def test_a_stale_answer_outlives_an_outage_for_a_day_only(world: World) -> None:
    register(world, ALICE)
    resolver = world.resolver()
    await resolver.resolve_did(ALICE.did)
    world.plc.mood = Mood.DOWN
    for _ in range(3):
        world.clock.now += 7200
        assert (await resolver.resolve_did(ALICE.did)).handle == ALICE.handle
        await settle()
    asked = reads(world, ALICE.did)
    assert (await resolver.resolve_did(ALICE.did)).handle == ALICE.handle
    await settle()
    assert reads(world, ALICE.did) == asked
    world.clock.now += 86_400
    with pytest.raises(Unreachable):
        await resolver.resolve_did(ALICE.did)


async def test_callers_at_the_same_time_share_one_request_and_one_may_give_up(
    world: World,
) -> None:
    register(world, ALICE)
    world.plc.mood = Mood.SLOW
    world.plc.delay_s = 0.05
    resolver = world.resolver()
    tasks = [asyncio.create_task(resolver.resolve_did(ALICE.did)) for _ in range(10)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(not isinstance(answer, BaseException) for answer in answers[1:])
    assert reads(world, ALICE.did) == 1


async def test_a_forced_refresh_asks_again_but_not_more_often_than_every_few_seconds(
    world: World,
) -> None:
    register(world, ALICE)
    resolver = world.resolver()
    await resolver.resolve_did(ALICE.did)
    await resolver.resolve_did(ALICE.did, refresh=True)
    assert reads(world, ALICE.did) == 1
    world.clock.now += 4
    await resolver.resolve_did(ALICE.did, refresh=True)
    assert reads(world, ALICE.did) == 2
    world.clock.now += 4
    world.plc.mood = Mood.DOWN
    with pytest.raises(Unreachable):
        await resolver.resolve_did(ALICE.did, refresh=True)
    assert (await resolver.resolve_did(ALICE.did)).handle == ALICE.handle


async def test_forgetting_asks_again_at_once_and_overtakes_a_running_lookup(world: World) -> None:
    register(world, ALICE)
    world.plc.mood = Mood.SLOW
    world.plc.delay_s = 0.05
    resolver = world.resolver()
    old = asyncio.create_task(resolver.resolve_did(ALICE.did))
    await asyncio.sleep(0.02)
    await resolver.forget(ALICE.did, ALICE.handle)
    world.plc.mood = Mood.KIND
    await resolver.resolve_did(ALICE.did)
    assert reads(world, ALICE.did) == 2
    assert (await old).handle == ALICE.handle


async def test_a_definite_no_is_remembered_briefly(world: World) -> None:
    resolver = world.resolver()
    for _ in range(3):
        with pytest.raises(DidNotFound):
            await resolver.resolve_did(ALICE.did)
    assert reads(world, ALICE.did) == 1
    register(world, ALICE)
    world.clock.now += 31
    assert (await resolver.resolve_did(ALICE.did)).handle == ALICE.handle


async def test_a_failure_is_remembered_for_seconds_only(world: World) -> None:
    register(world, ALICE)
    world.plc.mood = Mood.FAULTY
    resolver = world.resolver()
    for _ in range(3):
        with pytest.raises(Unreachable):
            await resolver.resolve_did(ALICE.did)
    assert reads(world, ALICE.did) == 1
    world.plc.mood = Mood.KIND
    world.clock.now += 6
    await resolver.resolve_did(ALICE.did)


async def test_a_tombstone_replaces_a_remembered_document(world: World) -> None:
    register(world, ALICE)
    store = MemoryStore()
    resolver = world.resolver(store=store)
    await resolver.resolve_did(ALICE.did)
    tombstone = sign_operation(make_tombstone(ALICE.genesis), ALICE.rotation)
    world.plc.directory.submit(ALICE.did, tombstone.to_json())
    world.clock.now += 10
    with pytest.raises(DidDeactivated):
        await resolver.resolve_did(ALICE.did, refresh=True)
    with pytest.raises(DidDeactivated):
        await resolver.resolve_did(ALICE.did)
    await asyncio.sleep(0)
    assert store.saved == {}


@pytest.mark.parametrize("did", ["did:key:zQ3shabc", "did:plc:short", "did:web:a.example:path"])
async def test_other_methods_are_not_supported_and_ask_nobody(world: World, did: str) -> None:
    with pytest.raises(UnsupportedDidMethod):
        await world.resolver().resolve_did(parse_did(did))
    assert world.plc.requests == world.web.requests == []


async def test_did_web_documents_are_resolved_and_checked(world: World) -> None:
    did = parse_did(f"did:web:localhost%3A{world.web.port}")
    path = "/.well-known/did.json"
    world.web.set_page("localhost", path, json.dumps({"id": did, "x": 1.0}).encode())
    assert (await world.resolver().resolve_did(did)).did == did
    for body in (b"[]", b"{", b'{"id":"did:web:other"}', b'{"id":"%s","n":1e400}' % did.encode()):
        world.web.set_page("localhost", path, body)
        with pytest.raises(DidNotFound):
            await world.resolver().resolve_did(did)


async def test_handles_are_remembered_and_told_apart_from_failures(world: World) -> None:
    world.dns.set_handle(ALICE.handle, ALICE.did)
    resolver = world.resolver()
    for _ in range(2):
        assert await resolver.resolve_handle(ALICE.handle) == ALICE.did
    assert len(world.dns.lookups) == 1
    world.clock.now += 4
    world.dns.txt.clear()
    with pytest.raises(HandleNotFound):
        await resolver.resolve_handle(ALICE.handle, refresh=True)
    world.dns.is_down = True
    with pytest.raises(Unreachable):
        await resolver.resolve_handle(BOB.handle)


async def test_good_answers_survive_a_restart_with_their_age(world: World) -> None:
    register(world, ALICE)
    store = MemoryStore()
    await world.resolver(store=store).resolve_did(ALICE.did)
    await asyncio.sleep(0)
    assert set(store.saved) == {ALICE.did}
    world.plc.mood = Mood.DOWN
    second = world.resolver(store=store)
    assert (await second.resolve_did(ALICE.did)).handle == ALICE.handle
    world.clock.now += 7200
    third = world.resolver(store=store)
    assert (await third.resolve_did(ALICE.did)).handle == ALICE.handle
    world.clock.now += 86_400
    with pytest.raises(Unreachable):
        await world.resolver(store=store).resolve_did(ALICE.did)


async def test_a_broken_or_damaged_store_costs_nothing_but_requests(world: World) -> None:
    register(world, ALICE, BOB)
    store = MemoryStore()
    store.saved[ALICE.did] = (b'{"id":"did:plc:other"}', int(world.clock.now * 1e6))
    assert (await world.resolver(store=store).resolve_did(ALICE.did)).handle == ALICE.handle
    store.is_broken = True
    resolver = world.resolver(store=store)
    assert (await resolver.resolve_did(BOB.did)).handle == BOB.handle
    await resolver.forget(BOB.did)
    assert (await resolver.resolve_did(BOB.did)).handle == BOB.handle


async def test_closing_ends_running_lookups_with_an_error(world: World) -> None:
    world.plc.mood = Mood.SLOW
    resolver = world.resolver()
    waiting = asyncio.create_task(resolver.resolve_did(ALICE.did))
    await asyncio.sleep(0.01)
    await resolver.close()
    with pytest.raises(Unreachable):
        await waiting


async def test_answers_count_with_what_they_take_once_parsed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's document of nothing but brackets is twenty times as large in memory."""
    counted: list[int] = []

    def put(self: AnswerCache[object], subject: str, value: object, size: int, at: float) -> None:
        counted.append(size)

    monkeypatch.setattr(AnswerCache, "put", put)
    did = parse_did(f"did:web:localhost%3A{world.web.port}")
    for more in ("x" * 20_000, [[]] * 20_000):
        page = json.dumps({"id": did, "more": more}, separators=(",", ":")).encode()
        world.web.set_page("localhost", "/.well-known/did.json", page)
        await world.resolver().resolve_did(did)
    assert counted[0] < 30_000
    assert 1_000_000 < counted[1] < 3_000_000


def test_the_memory_is_bounded_by_entries_and_bytes() -> None:
    cache: AnswerCache[str] = AnswerCache(CacheTimes(), max_entries=3, max_bytes=2000)
    for name in ("a", "b", "c"):
        cache.put(name, name, 100, 0.0)
    assert cache.get("a", 1.0) is not None
    cache.put("d", "d", 100, 0.0)
    assert cache.get("b", 1.0) is None
    assert len(cache) == 3
    cache.put("big", "big", 1500, 0.0)
    assert cache.size_bytes <= 2000
    assert cache.get("big", 1.0) is not None
    cache.put("huge", "huge", 5000, 0.0)
    assert len(cache) == 0
    assert cache.size_bytes == 0


def test_ages_are_counted_from_the_fetch() -> None:
    cache: AnswerCache[str] = AnswerCache(CacheTimes())
    cache.put("a", "a", 1, 100.0)
    for now_s, expected in ((100.0, Standing.FRESH), (3699.0, Standing.FRESH)):
        found = cache.get("a", now_s)
        assert found is not None
        assert found[1] is expected
    found = cache.get("a", 3700.0)
    assert found is not None
    assert found[1] is Standing.STALE
    assert cache.get("a", 99.0) is None
    cache.put("a", "a", 1, 100.0)
    assert cache.get("a", 86_500.0) is None
    cache.put_error("b", NotResolvable("no"), 0.0, is_definite=True)
    assert cache.get("b", 29.0) is not None
    assert cache.get("b", 30.0) is None
