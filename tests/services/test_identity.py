"""Who is who for this host (ID-1, ID-4, ID-13, ID-15, ID-36)."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pds.errors import RequestError, Unreachable
from pds.identity.errors import DidDeactivated, DidNotFound, HandleNotFound
from pds.protocol.diddoc import DidDocument, parse_did_document
from pds.protocol.plc import make_update, render_document, sign_operation
from pds.protocol.syntax import Did, Handle, parse_did, parse_handle
from pds.services.account_cache import AccountCache
from pds.services.handles import HandlePolicy, HandleSettings
from pds.services.identity import Identity
from pds.services.identity_store import SavedIdentities
from pds.store.accounts import Account, insert_account, update_takedown
from pds.store.engine import CommittedEvent, Engine, Txn
from tests.identity.people import Person, make_person
from tests.services.account_host import SettableClock, open_engine

ALICE = make_person("alice", domain="pds.test")
FAR = make_person("far", domain="example.com")


@dataclass
class Names:
    """A resolver with a table of answers; what is not in it cannot be found out."""

    documents: dict[Did, DidDocument | Exception] = field(default_factory=dict)
    fresh_documents: dict[Did, DidDocument] = field(default_factory=dict)
    handles: dict[Handle, Did | Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def resolve_did(self, did: Did, *, refresh: bool = False) -> DidDocument:
        if refresh and did in self.fresh_documents:
            self.documents[did] = self.fresh_documents[did]
        return self._answer(self.documents, did)

    async def resolve_handle(self, handle: Handle, *, refresh: bool = False) -> Did:
        self.asked.append(handle)
        return self._answer(self.handles, handle)

    def _answer(self, table, key):  # type: ignore[no-untyped-def]
        answer = table.get(key, Unreachable("not in the table"))
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class Cached:
    cache: AccountCache

    async def lookup(self, did_or_handle: str) -> Account | None:
        return await self.cache.get(did_or_handle)


@dataclass
class Host:
    engine: Engine
    names: Names
    cache: AccountCache
    clock: SettableClock
    events: list[CommittedEvent] = field(default_factory=list)
    appview: dict[Handle, str | Exception] | None = None

    def identity(self) -> Identity:
        async def ask(handle: Handle) -> str | None:
            answer = (self.appview or {}).get(handle)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return Identity(
            resolver=self.names,
            accounts=Cached(self.cache),
            handles=HandlePolicy(HandleSettings(service_domains=(".pds.test",), dev=True)),
            engine=self.engine,
            ask_appview=None if self.appview is None else ask,
        )

    async def add_account(self, person: Person) -> int:
        now_us = self.clock.now_us()

        def insert(txn: Txn) -> int:
            return insert_account(
                txn,
                did=person.did,
                handle=person.handle,
                email=f"{person.handle}@mail.test",
                password_hash="x",
                now_us=now_us,
            )

        return await self.engine.transact("test.account", insert)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    clock = SettableClock()
    async with open_engine(tmp_path, clock) as engine:
        made = Host(engine, Names(), AccountCache(engine), clock)
        engine.add_event_hook(made.events.extend)
        yield made


def document(person: Person, *, handle: str | None = None) -> DidDocument:
    operation = person.genesis
    if handle is not None:
        fields = make_update(operation, also_known_as=[f"at://{handle}"])
        operation = sign_operation(fields, person.rotation)
    assert operation.state is not None
    return parse_did_document(render_document(person.did, operation.state), person.did)


async def refusal(awaitable) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(RequestError) as caught:
        await awaitable
    assert caught.value.status == 400
    return caught.value.name


async def test_a_local_active_account_is_named_without_asking_anybody(host: Host) -> None:
    await host.add_account(ALICE)
    host.appview = {ALICE.handle: FAR.did}
    assert await host.identity().resolve_handle(ALICE.handle) == ALICE.did
    assert host.names.asked == []


async def test_a_name_of_ours_that_nobody_has_is_not_found_without_asking_anybody(
    host: Host,
) -> None:
    name = parse_handle("nobody.pds.test")
    host.appview = {name: FAR.did}
    host.names.handles[name] = FAR.did
    assert await refusal(host.identity().resolve_handle(name)) == "HandleNotFound"
    assert host.names.asked == []


async def test_an_account_that_is_not_active_does_not_hold_its_name(host: Host) -> None:
    aid = await host.add_account(ALICE)
    await host.engine.transact("test.takedown", update_takedown, aid, "ref")
    assert await refusal(host.identity().resolve_handle(ALICE.handle)) == "HandleNotFound"


async def test_foreign_names_are_resolved_and_failures_told_apart(host: Host) -> None:
    identity = host.identity()
    host.names.handles[FAR.handle] = FAR.did
    assert await identity.resolve_handle(FAR.handle) == FAR.did
    host.names.handles[FAR.handle] = HandleNotFound("no")
    assert await refusal(identity.resolve_handle(FAR.handle)) == "HandleNotFound"
    del host.names.handles[FAR.handle]
    with pytest.raises(Unreachable):
        await identity.resolve_handle(FAR.handle)


@pytest.mark.parametrize("answer", [None, "nonsense", Unreachable("down"), HandleNotFound("no")])
async def test_the_appview_is_a_hint_only(host: Host, answer: str | Exception | None) -> None:
    host.appview = {FAR.handle: FAR.did}
    assert await host.identity().resolve_handle(FAR.handle) == FAR.did
    assert host.names.asked == []
    host.appview = {} if answer is None else {FAR.handle: answer}
    host.names.handles[FAR.handle] = ALICE.did
    assert await host.identity().resolve_handle(FAR.handle) == ALICE.did


async def test_documents_are_found_or_refused_by_name(host: Host) -> None:
    identity = host.identity()
    host.names.documents[FAR.did] = document(FAR)
    assert (await identity.resolve_did(FAR.did)).handle == FAR.handle
    host.names.documents[FAR.did] = DidNotFound("no")
    assert await refusal(identity.resolve_did(FAR.did)) == "DidNotFound"
    host.names.documents[FAR.did] = DidDeactivated("ended")
    assert await refusal(identity.resolve_did(FAR.did)) == "DidDeactivated"
    with pytest.raises(Unreachable):
        await identity.resolve_did(parse_did("did:web:unknown.example.com"))


async def test_an_identity_holds_in_both_directions(host: Host) -> None:
    identity = host.identity()
    host.names.handles[FAR.handle] = FAR.did
    host.names.documents[FAR.did] = document(FAR)
    for identifier in (FAR.did, FAR.handle):
        found = await identity.resolve_identity(identifier)
        assert (found.did, found.handle) == (FAR.did, FAR.handle)
        assert found.to_json()["didDoc"]["id"] == FAR.did


@pytest.mark.parametrize("back", [ALICE.did, HandleNotFound("no"), Unreachable("down")])
async def test_a_handle_that_does_not_lead_back_is_shown_as_invalid(
    host: Host, back: Did | Exception
) -> None:
    host.names.handles[FAR.handle] = back
    host.names.documents[FAR.did] = document(FAR)
    assert (await host.identity().resolve_identity(FAR.did)).handle == "handle.invalid"


async def test_the_appview_has_no_say_when_both_directions_must_hold(host: Host) -> None:
    host.appview = {FAR.handle: FAR.did}
    host.names.handles[FAR.handle] = HandleNotFound("no")
    host.names.documents[FAR.did] = document(FAR)
    identity = host.identity()
    assert (await identity.resolve_identity(FAR.did)).handle == "handle.invalid"
    assert await refusal(identity.resolve_identity(FAR.handle)) == "HandleNotFound"


async def test_a_local_identity_needs_no_dns(host: Host) -> None:
    await host.add_account(ALICE)
    host.names.documents[ALICE.did] = document(ALICE)
    found = await host.identity().resolve_identity(ALICE.handle)
    assert (found.did, found.handle) == (ALICE.did, ALICE.handle)
    host.names.documents[ALICE.did] = document(ALICE, handle="else.example.com")
    assert (await host.identity().resolve_identity(ALICE.did)).handle == "handle.invalid"


async def test_refresh_announces_an_account_of_ours_only_when_it_changed(host: Host) -> None:
    await host.add_account(ALICE)
    identity = host.identity()
    host.names.documents[ALICE.did] = document(ALICE)
    assert (await identity.refresh_identity(ALICE.did)).handle == ALICE.handle
    assert host.events == []
    host.names.fresh_documents[ALICE.did] = document(ALICE, handle="moved.example.com")
    assert (await identity.refresh_identity(ALICE.handle)).handle == "handle.invalid"
    assert [event.kind for event in host.events] == ["identity"]
    await identity.refresh_identity(ALICE.did)
    assert len(host.events) == 1


async def test_refresh_of_strangers_announces_nothing(host: Host) -> None:
    host.names.handles[FAR.handle] = FAR.did
    host.names.documents[FAR.did] = document(FAR)
    host.names.fresh_documents[FAR.did] = document(FAR, handle="moved.example.com")
    assert (await host.identity().refresh_identity(FAR.handle)).handle == "handle.invalid"
    assert host.events == []
    assert await refusal(host.identity().refresh_identity("not a name")) == "InvalidRequest"


async def test_saved_identities_are_rows_that_can_be_swept(host: Host) -> None:
    saved = SavedIdentities(host.engine)
    await saved.save("did:web:a", b"one", 1000)
    await saved.save("did:web:a", b"two", 2000)
    await saved.save("did:web:b", b"three", 5000)
    assert await saved.load("did:web:a") == (b"two", 2000)
    assert await saved.sweep(3000) == 1
    assert await saved.load("did:web:a") is None
    await saved.forget("did:web:b")
    assert await saved.load("did:web:b") is None
