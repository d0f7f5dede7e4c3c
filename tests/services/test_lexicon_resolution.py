"""Published schemas: learned with proof, used for the next writes; a no is no "not found out".

Spec: LEX-61, LEX-63, LEX-65, LEX-80..LEX-86, LEX-90
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pds.errors import NotResolvable, RequestError, Unavailable, Unreachable
from pds.protocol.car import encode_car, read_car
from pds.protocol.cid import Cid
from pds.protocol.keys import make_signer
from pds.protocol.syntax import Nsid
from pds.services import lexicon_fetch, lexicon_resolution
from pds.services.lexicon_fetch import MAX_CAR_BYTES, MAX_SCHEMA_BYTES, LexiconNotFound
from pds.services.lexicon_resolution import (
    FAILURE_S,
    MAX_DOCUMENTS,
    MAX_ROUNDS,
    MAX_S,
    NEGATIVE_S,
    STALE_S,
    TYPE_TIMES,
)
from pds.services.settings import LexiconPolicy
from tests.fakes.web import Page
from tests.services.lexicon_host import (
    AUTHORITY,
    PDS_HOST,
    SCHEMA,
    TEXT,
    LexiconHost,
    lexicon_host,
    record_schema,
)
from tests.services.repo_host import BOB, post
from tests.support_pace import within

NOTE = "net.example.note"
NAME = Nsid(NOTE)
THING = "net.example.thing"


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[LexiconHost]:
    async with lexicon_host(tmp_path) as made:
        yield made


async def refused(host: LexiconHost, *args: Any, **kwargs: Any) -> RequestError:
    with pytest.raises(RequestError) as info:
        await host.write(*args, **kwargs)
    assert (info.value.name, info.value.status) == ("InvalidRequest", 400)
    return info.value


def record_ref(target: str) -> dict[str, Any]:
    return record_schema(item={"type": "ref", "ref": target})


def object_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


# --- policies ---------------------------------------------------------------------------------


async def test_a_lazy_host_checks_the_writes_after_the_first(host: LexiconHost) -> None:
    """LEX-63, LEX-65: the first write does not wait, and what is stored is never judged again."""
    await host.publish(NOTE, record_schema(text=TEXT))
    assert await host.write(NOTE, text=1) == "unknown"
    await host.lexicons.settle()
    assert await host.write(NOTE, text="short") == "valid"
    error = await refused(host, NOTE, text=1)
    assert error.message == f"Invalid {NOTE} record: record/text: must be a string"
    assert (await refused(host, NOTE, text="a long text")).message.endswith("(maximum 10 bytes)")
    assert await host.write(NOTE, validate=False, text=1) is None
    assert host.fetches == 1


async def test_validate_true_waits_for_the_schema(host: LexiconHost) -> None:
    """LEX-61."""
    await host.publish(NOTE, record_schema(text=TEXT))
    assert await host.write(NOTE, validate=True, text="short") == "valid"
    error = await refused(host, "net.example.gone", validate=True, text="short")
    assert error.message.startswith("Unknown lexicon type: net.example.gone (")


async def test_a_host_that_requires_schemas_refuses_what_has_none(host: LexiconHost) -> None:
    """The write waits; `validate: false` is left to the client; bundled schemas need nothing."""
    host.make_lexicons(LexiconPolicy.REQUIRED)
    await host.publish(NOTE, record_schema(text=TEXT))
    assert await host.write(NOTE, text="short") == "valid"
    await refused(host, NOTE, text=1)
    error = await refused(host, THING, n=1)
    assert THING in error.message
    assert "has no schema record" not in error.message
    assert await host.write(THING, validate=False, n=1) is None
    host.dns.is_down = True
    bob = host.base.aids[BOB]
    result = await host.repos.write(bob, [post()])
    assert result.outcomes[0].validation_status == "valid"
    error = await refused(host, "org.silent.thing", n=1)
    assert "could not be found out now" in error.message


async def test_a_required_schema_that_comes_late_is_not_waited_for(host: LexiconHost) -> None:
    """The write is refused in time, and the look-up goes on for the next one."""
    host.make_lexicons(LexiconPolicy.REQUIRED, write_wait_s=0.05)
    await host.publish(NOTE, record_schema(text=TEXT))
    await host.serve(NOTE, Page(await host.prove(NOTE), delay_s=0.3))
    async with asyncio.timeout(2):
        error = await refused(host, NOTE, text="short")
    assert "could not be found out in time" in error.message
    await host.lexicons.settle()
    assert await host.write(NOTE, text="short") == "valid"


async def test_a_host_that_looks_nothing_up_asks_nobody(host: LexiconHost) -> None:
    host.make_lexicons(LexiconPolicy.OFF)
    await host.publish(NOTE, record_schema(text=TEXT))
    assert await host.write(NOTE, text=1) == "unknown"
    error = await refused(host, NOTE, validate=True, text="short")
    assert error.message == f"Unknown lexicon type: {NOTE}"
    with pytest.raises(LexiconNotFound):
        await host.lexicons.document(NAME)
    assert (host.dns.lookups, host.fetches) == ([], 0)


async def test_known_collections_and_names_that_are_none_cost_no_look_up(host: LexiconHost) -> None:
    bob = host.base.aids[BOB]
    await host.repos.write(bob, [post()])
    error = await refused(host, "no-nsid", n=1)
    assert "NSID" in error.message or "nsid" in error.message.lower()
    assert host.dns.lookups == []


async def test_a_batch_is_judged_by_all_its_schemas(host: LexiconHost) -> None:
    """LEX-66."""
    await host.publish(NOTE, record_schema(text=TEXT))
    await host.publish(THING, record_schema(n={"type": "integer"}))
    host.make_lexicons(LexiconPolicy.REQUIRED)
    found = await host.lexicons.schemas({NOTE, THING}, must_know=False)
    assert found.keys() == {NOTE, THING}
    with pytest.raises(RequestError, match=r"net\.example\.gone"):
        await host.lexicons.schemas({NOTE, "net.example.gone"}, must_know=False)


# --- what is believed -------------------------------------------------------------------------


async def test_the_record_is_proven_by_the_key_of_its_authority(host: LexiconHost) -> None:
    """LEX-81, LEX-82."""
    await host.publish(NOTE, record_schema(text=TEXT))
    found = await host.lexicons.document(NAME)
    assert found.uri == f"at://{AUTHORITY}/{SCHEMA}/{NOTE}"
    assert found.nsid == NOTE
    _roots, blocks = read_car(await host.prove(NOTE))
    assert blocks[found.cid] == found.block


async def not_found_out(host: LexiconHost, reason: str | None = None) -> None:
    """The question stays open: an error that is no no, soon asked again, and never saved."""
    with pytest.raises(Unreachable, match=reason):
        await host.lexicons.document(NAME)
    assert await host.write(NOTE, text=1) == "unknown"
    await host.lexicons.settle()
    assert await host.base.rows("SELECT nsid FROM lexicon_cache") == []


async def definitely_none(host: LexiconHost, reason: str) -> None:
    """A no: remembered for a while here, and saved for other nodes."""
    with pytest.raises(LexiconNotFound, match=reason):
        await host.lexicons.document(NAME)
    asked = len(host.dns.lookups)
    assert await host.write(NOTE, text=1) == "unknown"
    await host.lexicons.settle()
    assert len(host.dns.lookups) == asked
    rows = await host.base.rows("SELECT nsid, outcome, document FROM lexicon_cache")
    assert rows == [(NOTE, "none", None)]


async def test_a_wrong_signature_is_not_believed(host: LexiconHost) -> None:
    """LEX-81: the document was fetched again before that was said."""
    await host.publish(NOTE, record_schema(text=TEXT))
    host.set_document(key=make_signer("p256", b"\x07" * 32).public_key)
    await not_found_out(host, "signature does not verify")


async def test_a_key_that_has_just_changed_is_looked_up_again(host: LexiconHost) -> None:
    await host.publish(NOTE, record_schema(text=TEXT))
    documents = host.base.documents
    right = documents.by_did[AUTHORITY]
    host.set_document(key=make_signer("p256", b"\x07" * 32).public_key)
    old, asked = documents.by_did[AUTHORITY], []

    async def resolve_did(did: Any, *, refresh: bool = False) -> Any:
        asked.append(refresh)
        return right if refresh else old

    documents.resolve_did = resolve_did  # type: ignore[method-assign]
    assert (await host.lexicons.document(NAME)).nsid == NOTE
    assert asked == [False, True]


async def test_the_repo_of_somebody_else_proves_nothing(host: LexiconHost) -> None:
    """LEX-81: Bob's key may sign Bob's repo only."""
    await host.publish(NOTE, record_schema(text=TEXT))
    await host.write(SCHEMA, NOTE, lexicon=1, id=NOTE, defs=record_schema(other=TEXT))
    await host.serve(NOTE, await host.prove(NOTE, BOB))
    host.set_document(key=host.base.key(BOB))
    await not_found_out(host, "another account")


@pytest.mark.parametrize("fault", ["no car", "no root", "changed", "too large", "hang up", "500"])
async def test_a_faulty_pds_leaves_the_question_open(host: LexiconHost, fault: str) -> None:
    """LEX-84."""
    await host.publish(NOTE, record_schema(text=TEXT))
    proof = await host.prove(NOTE)
    roots, blocks = read_car(proof)
    page = {
        "no car": Page(b"<html>"),
        "no root": Page(encode_car((), blocks.items())),
        "changed": Page(proof[:-3] + b"xyz"),
        "too large": Page(proof + bytes(MAX_CAR_BYTES)),
        "hang up": Page(hang_up=True),
        "500": Page(b"", 500),
    }[fault]
    assert roots
    await host.serve(NOTE, page)
    await not_found_out(host)


async def test_a_slow_pds_is_given_up(host: LexiconHost) -> None:
    """LEX-84."""
    host.make_lexicons(timeout_s=0.1)
    await host.publish(NOTE, record_schema(text=TEXT))
    await host.serve(NOTE, Page(b"", delay_s=0.4))
    await not_found_out(host, "in time")


async def test_dns_that_does_not_answer_leaves_the_question_open(host: LexiconHost) -> None:
    """LEX-80."""
    host.dns.is_down = True
    await not_found_out(host, "nameserver")


async def test_no_record_in_dns_is_a_no(host: LexiconHost) -> None:
    """LEX-80."""
    await definitely_none(host, "no TXT record")


async def test_a_did_without_a_document_or_a_pds_is_a_no(host: LexiconHost) -> None:
    host.set_dns(NOTE, BOB)
    await definitely_none(host, "no PDS or no signing key")


async def test_a_proof_that_there_is_none_is_a_no(host: LexiconHost) -> None:
    host.set_dns(NOTE)
    await host.serve(NOTE, await host.prove(NOTE))
    await definitely_none(host, "has no schema record")


async def test_a_pds_that_refuses_is_a_no(host: LexiconHost) -> None:
    host.set_dns(NOTE)
    await host.serve(NOTE, Page(b'{"error":"RepoDeactivated"}', 400))
    await definitely_none(host, "answered 400")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"id": THING}, "another id"),
        ({"lexicon": 2}, "lexicon must be 1"),
        ({"defs": {}}, "at least one definition"),
        ({"defs": {"main": {"type": "space"}}}, "not a type of data"),
        ({"defs": {"main": {"type": "string", "maxLength": -1}}}, "must not be negative"),
        ({"text": "x" * MAX_SCHEMA_BYTES}, "larger than"),
    ],
)
async def test_a_schema_that_breaks_a_rule_is_a_no(
    host: LexiconHost, fields: dict[str, Any], reason: str
) -> None:
    """LEX-11, LEX-82."""
    await host.publish(NOTE, **({"defs": record_schema(text=TEXT)} | fields))
    await definitely_none(host, reason)


async def test_redirects_are_few(host: LexiconHost) -> None:
    """LEX-84."""
    host.set_dns(NOTE)
    await host.serve(NOTE, Page(b"", 302, {"Location": f"{host.endpoint}/loop"}))
    host.web.set_page(PDS_HOST, "/loop", Page(b"", 302, {"Location": "/loop"}))
    await not_found_out(host, "redirect")
    assert host.fetches == lexicon_fetch.MAX_REDIRECTS + 1


async def test_a_schema_of_our_own_account_is_read_here(host: LexiconHost) -> None:
    """LEX-85: with the same proof, and without a request to ourselves."""
    await host.publish(NOTE, record_schema(text=TEXT))
    own = {"own_url": host.endpoint, "own_proof": host.base.exports.record_proof}
    host.make_lexicons(**own)
    assert (await host.lexicons.document(NAME)).nsid == NOTE
    await host.base.update_account(deactivated_at=1)
    host.set_dns(THING)
    with pytest.raises(LexiconNotFound, match="deactivated"):
        await host.lexicons.document(Nsid(THING))
    assert host.fetches == 0


# --- references -------------------------------------------------------------------------------


async def test_references_are_followed_into_other_documents(host: LexiconHost) -> None:
    """Also in circles (LEX-12), and into bundled documents, which nobody is asked for."""
    await host.publish(
        NOTE,
        record_schema(
            thing={"type": "ref", "ref": f"{THING}#part"},
            post={"type": "ref", "ref": "com.atproto.repo.strongRef"},
        ),
    )
    part = object_of(
        name=TEXT, again={"type": "ref", "ref": "#part"}, back={"type": "ref", "ref": f"{NOTE}#me"}
    )
    await host.publish(THING, {"part": part})
    defs = record_schema(thing={"type": "ref", "ref": f"{THING}#part"})
    await host.publish(NOTE, defs | {"me": object_of(part={"type": "ref", "ref": f"{THING}#part"})})
    assert await host.write(NOTE, validate=True, thing={"again": {"name": "x"}}) == "valid"
    error = await refused(host, NOTE, thing={"back": {"part": {"name": 1}}})
    assert "record/thing/back/part/name" in error.message
    assert host.fetches == 2
    assert {name.split(".", 1)[1] for name in host.dns.lookups} == {"example.net"}


async def test_one_missing_reference_makes_all_of_it_unknown(host: LexiconHost) -> None:
    """LEX-11: a definite no if the reference is one, an open question if not."""
    await host.publish(NOTE, record_ref(f"{THING}#part"))
    await host.publish(THING, {"other": object_of()})
    error = await refused(host, NOTE, validate=True, item={})
    assert f"refers to {THING}#part, which is not defined" in error.message
    await host.publish("net.example.two", record_ref("org.silent.thing"))
    host.dns.down.add("_lexicon.silent.org")
    error = await refused(host, "net.example.two", validate=True, item={})
    assert "could not be found out now" in error.message


@pytest.mark.parametrize(
    "target", ["app.bsky.feed.post#gone", "com.atproto.repo.createRecord", "app.bsky.feed.defs"]
)
async def test_a_bundled_document_is_never_asked_for_nor_added_to(
    host: LexiconHost, target: str
) -> None:
    """LEX-65: bundled schemas win; LEX-5: some names may not be referred to."""
    await host.publish(NOTE, record_ref(target))
    error = await refused(host, NOTE, validate=True, item={})
    assert "not defined" in error.message or "cannot be used" in error.message
    assert host.dns.lookups == ["_lexicon.example.net"]


async def test_a_schema_that_is_no_record_takes_no_records(host: LexiconHost) -> None:
    await host.publish(NOTE, {"main": {"type": "query"}})
    error = await refused(host, NOTE, validate=True, n=1)
    assert "is not a type of record" in error.message


async def test_endless_references_are_given_up(host: LexiconHost) -> None:
    for n in range(MAX_ROUNDS + 1):
        await host.publish(f"net.example.n{n}", {"main": object_of(next=ref(n + 1))})
    await host.publish(NOTE, record_schema(next=ref(0)))
    error = await refused(host, NOTE, validate=True, next={})
    assert "too many schemas" in error.message
    assert host.fetches == MAX_ROUNDS


def ref(n: int) -> dict[str, str]:
    return {"type": "ref", "ref": f"net.example.n{n}"}


async def test_too_many_or_too_large_references_are_not_followed(
    host: LexiconHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"n{n}": ref(n) for n in range(MAX_DOCUMENTS)}
    await host.publish(NOTE, record_schema(**many))
    error = await refused(host, NOTE, validate=True, n0={})
    assert f"more than {MAX_DOCUMENTS} schemas" in error.message
    assert host.fetches == 1
    monkeypatch.setattr(lexicon_resolution, "MAX_SET_BYTES", 100)
    await host.publish(THING, record_schema(text=TEXT))
    error = await refused(host, THING, validate=True, text="x")
    assert "bytes of schemas" in error.message


async def test_an_expensive_schema_costs_no_more_than_the_record(host: LexiconHost) -> None:
    """Thousands of accepted types of blob are one look-up for each blob, not thousands."""
    kinds = [f"x{n}/*" for n in range(8000)]
    defs = record_schema(items={"type": "array", "items": {"type": "blob", "accept": kinds}})
    await host.publish(NOTE, defs)
    catalog = (await host.lexicons.schemas({NOTE}, must_know=True))[NOTE]
    blob = {"$type": "blob", "ref": Cid.of_raw(b""), "mimeType": "x7999/z", "size": 1}
    record = {"$type": NOTE, "items": [blob] * 8000}
    started = time.thread_time()
    assert catalog.validate_record(NOTE, "a", record) == "valid"
    assert within(0.5, started)
    assert catalog.documents.keys() == {NOTE}


# --- memory -----------------------------------------------------------------------------------


async def test_a_changed_schema_is_taken_over_and_old_records_stay(host: LexiconHost) -> None:
    """LEX-90: whoever breaks their schema breaks new writes only."""
    await host.publish(NOTE, record_schema(text=TEXT))
    assert await host.write(NOTE, "old", validate=True, text="short") == "valid"
    await host.publish(NOTE, record_schema(number={"type": "integer"}))
    assert await host.write(NOTE, text="short") == "valid"
    host.base.clock.advance(STALE_S + 1)
    assert await host.write(NOTE, text="short") == "valid"
    await host.lexicons.settle()
    await refused(host, NOTE, text="short")
    assert await host.write(NOTE, number=1) == "valid"
    record = await host.repos.get_record(BOB, NOTE, "old")
    assert b"short" in record
    assert host.fetches == 2


async def test_a_schema_outlives_the_silence_of_its_authority(host: LexiconHost) -> None:
    """A failed refresh keeps what there is; a definite no does not."""
    await host.publish(NOTE, record_schema(text=TEXT))
    await host.write(NOTE, validate=True, text="short")
    host.dns.is_down = True
    for _ in range(3):
        host.base.clock.advance(STALE_S + 1)
        assert await host.write(NOTE, text="short") == "valid"
        await host.lexicons.settle()
    host.dns.is_down = False
    host.dns.txt.clear()
    host.base.clock.advance(STALE_S + 1)
    for expected in ("valid", "unknown"):
        assert await host.write(NOTE, text="short") == expected
        await host.lexicons.settle()
    host.dns.is_down = True
    host.base.clock.advance(MAX_S)
    assert await host.write(NOTE, text="short") == "unknown"


async def test_other_nodes_and_later_starts_ask_nobody_again(host: LexiconHost) -> None:
    await host.publish(NOTE, record_schema(text=TEXT))
    await host.write(NOTE, validate=True, text="short")
    with pytest.raises(NotResolvable):
        await host.lexicons.document(Nsid("org.gone.thing"))
    await host.lexicons.settle()
    lookups = list(host.dns.lookups)
    await host.lexicons.close()
    host.make_lexicons()
    assert await host.write(NOTE, validate=True, text="short") == "valid"
    with pytest.raises(NotResolvable, match="a moment ago"):
        await host.lexicons.document(Nsid("org.gone.thing"))
    assert (host.dns.lookups, host.fetches) == (lookups, 1)
    host.base.clock.advance(NEGATIVE_S + 1)
    with pytest.raises(NotResolvable, match="no TXT record"):
        await host.lexicons.document(Nsid("org.gone.thing"))


async def test_a_start_in_silence_uses_what_was_saved(host: LexiconHost) -> None:
    await host.publish(NOTE, record_schema(text=TEXT))
    await host.lexicons.document(NAME)
    await host.lexicons.settle()
    host.base.clock.advance(2 * STALE_S)
    host.dns.is_down = True
    host.make_lexicons()
    assert await host.write(NOTE, validate=True, text="short") == "valid"
    host.base.clock.advance(MAX_S)
    host.make_lexicons()
    error = await refused(host, NOTE, validate=True, text="short")
    assert "could not be found out now" in error.message


async def test_a_damaged_row_is_as_good_as_none(host: LexiconHost) -> None:
    await host.publish(NOTE, record_schema(text=TEXT))
    await host.lexicons.document(NAME)
    await host.lexicons.settle()

    def damage(txn: Any) -> None:
        txn.write("UPDATE lexicon_cache SET document = ?", (b"\xff",))

    await host.base.engine.transact("test.damage", damage)
    host.make_lexicons()
    assert (await host.lexicons.document(NAME)).nsid == NOTE
    assert host.fetches == 2


async def test_a_no_is_asked_again_later_and_a_failure_sooner(host: LexiconHost) -> None:
    for is_down, pause_s in ((True, FAILURE_S), (False, NEGATIVE_S)):
        host.dns.is_down = is_down
        for _ in range(5):
            assert await host.write(NOTE, n=1) == "unknown"
            await host.lexicons.settle()
        asked = len(host.dns.lookups)
        host.base.clock.advance(pause_s + 1)
        await host.write(NOTE, n=1)
        await host.lexicons.settle()
        assert len(host.dns.lookups) == asked + 1
        host.base.clock.advance(NEGATIVE_S + 1)


async def test_writes_at_the_same_time_make_one_look_up(host: LexiconHost) -> None:
    await host.publish(NOTE, record_schema(text=TEXT))
    found = await asyncio.gather(
        *(host.lexicons.schemas({NOTE}, must_know=True) for _ in range(20)),
        host.lexicons.document(NAME),
    )
    assert len({id(schemas[NOTE]) for schemas in found[:-1]}) == 1
    assert host.fetches == 1


async def test_look_ups_at_the_same_time_are_limited(host: LexiconHost) -> None:
    """A flood of made-up collections waits for nobody and starts no flood of requests."""
    names = {f"org.flood{n}.thing" for n in range(200)}
    host.dns.slow |= {f"_lexicon.flood{n}.org" for n in range(200)}
    assert await host.lexicons.schemas(names, must_know=False) == {}
    with pytest.raises(Unreachable, match="too many"):
        await host.lexicons._types.ask("org.flood.more")
    await asyncio.sleep(0)
    assert len(host.dns.lookups) <= 64
    await host.lexicons.close()


async def test_the_documents_of_a_type_are_looked_at_now_and_then(host: LexiconHost) -> None:
    """A change of a document referred to is noticed too."""
    await host.publish(NOTE, record_ref(THING))
    await host.publish(THING, {"main": object_of(text=TEXT)})
    assert await host.write(NOTE, validate=True, item={"text": "x"}) == "valid"
    await host.publish(THING, {"main": object_of(text={"type": "integer"})})
    host.base.clock.advance(STALE_S - TYPE_TIMES.stale_s)
    await host.write(NOTE, item={"text": "x"})
    await host.lexicons.settle()
    assert host.fetches == 2
    host.base.clock.advance(TYPE_TIMES.stale_s + 1)
    await host.write(NOTE, item={"text": "x"})
    await host.lexicons.settle()
    await refused(host, NOTE, item={"text": "x"})


async def test_a_database_that_fails_costs_requests_only(
    host: LexiconHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.publish(NOTE, record_schema(text=TEXT))
    engine = host.base.engine

    async def fail(*_args: Any, **_options: Any) -> None:
        raise Unavailable("not now")

    monkeypatch.setattr(engine, "read", fail)
    monkeypatch.setattr(engine, "transact", fail)
    assert (await host.lexicons.document(NAME)).nsid == NOTE
    await host.lexicons.settle()


async def test_a_fault_of_ours_is_said_and_leaves_the_question_open(
    host: LexiconHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_nsid: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(host.lexicons._fetcher, "fetch", fail)
    with pytest.raises(Unreachable):
        await host.lexicons.document(NAME)
    assert "lexicon.look_up_failed" in caplog.text


async def test_old_and_surplus_rows_are_swept(
    host: LexiconHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.publish(NOTE, record_schema(text=TEXT))
    await host.publish(THING, record_schema(text=TEXT))
    for name in (NOTE, THING, "org.gone.thing"):
        host.base.clock.advance(1)
        with suppress(LexiconNotFound):
            await host.lexicons.document(Nsid(name))
    await host.lexicons.settle()
    now_us = host.base.clock.now_us
    assert await host.lexicons.sweep(now_us()) == 0
    host.base.clock.advance(NEGATIVE_S + 1)
    assert await host.lexicons.sweep(now_us()) == 1
    monkeypatch.setattr(lexicon_resolution, "MAX_ROWS", 1)
    assert await host.lexicons.sweep(now_us()) == 1
    assert await host.base.rows("SELECT nsid FROM lexicon_cache") == [(THING,)]
    host.base.clock.advance(MAX_S)
    assert await host.lexicons.sweep(now_us()) == 1
