"""Methods: parameters, bodies, answers and messages."""

from typing import Any
from urllib.parse import parse_qsl

import pytest

from pds.protocol.cid import Cid
from pds.protocol.lexicon.catalog import Catalog, LexiconError, Method
from pds.services.lexicons import load_catalog
from tests.support import load_vectors

VECTORS = load_vectors("lexicon/params.json")


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


@pytest.fixture(scope="module")
def ask() -> Method:
    method = Catalog.from_documents([VECTORS["document"]]).method("net.example.ask")
    assert method is not None
    return method


def get(catalog: Catalog, nsid: str) -> Method:
    method = catalog.method(nsid)
    assert method is not None
    return method


@pytest.mark.parametrize(
    "case", VECTORS["cases"], ids=lambda case: f"{case['rule']} {case['name']}"
)
def test_parameter_vectors(ask: Method, case: dict[str, Any]) -> None:
    """LEX-22 LEX-33 LEX-35 XRPC-3."""
    pairs = parse_qsl(case["query"], keep_blank_values=True)
    if "values" in case:
        values = ask.parse_params(pairs)
        assert values == case["values"]
        assert {k: type(v) for k, v in values.items()} == {
            k: type(v) for k, v in case["values"].items()
        }
        return
    with pytest.raises(LexiconError) as caught:
        ask.parse_params(pairs)
    assert caught.value.path == case["path"]
    assert case["message"] in caught.value.message


def test_method_facts(catalog: Catalog) -> None:
    """Kind, encodings and error names are what the server dispatches by (XRPC-2, XRPC-4)."""
    record = get(catalog, "com.atproto.repo.getRecord")
    assert (record.kind, record.input_encoding, record.output_encoding, record.errors) == (
        "query",
        None,
        "application/json",
        ("RecordNotFound",),
    )
    upload = get(catalog, "com.atproto.repo.uploadBlob")
    assert (upload.kind, upload.input_encoding, upload.has_input_schema) == (
        "procedure",
        "*/*",
        False,
    )
    assert upload.has_output_schema
    repo = get(catalog, "com.atproto.sync.getRepo")
    assert (repo.output_encoding, repo.has_output_schema) == ("application/vnd.ipld.car", False)
    assert get(catalog, "com.atproto.sync.subscribeRepos").kind == "subscription"
    logout = get(catalog, "com.atproto.server.deleteSession")
    assert (logout.input_encoding, logout.output_encoding) == (None, None)


def test_method_is_built_once(catalog: Catalog) -> None:
    nsid = "com.atproto.server.describeServer"
    assert catalog.method(nsid) is catalog.method(nsid)


@pytest.mark.parametrize(
    "nsid", ["net.example.nothing", "app.bsky.feed.post", "com.atproto.repo.defs", "", "#x"]
)
def test_what_is_no_method_is_none(catalog: Catalog, nsid: str) -> None:
    assert catalog.method(nsid) is None


def test_method_whose_links_lead_nowhere_is_unknown() -> None:
    """LEX-11."""
    payload = {"encoding": "application/json", "schema": {"type": "ref", "ref": "net.example.gone"}}
    document = {
        "lexicon": 1,
        "id": "net.example.ask",
        "defs": {"main": {"type": "query", "output": payload}},
    }
    assert Catalog.from_documents([document]).method("net.example.ask") is None


def test_method_without_parameters_ignores_all(catalog: Catalog) -> None:
    """XRPC-3."""
    assert get(catalog, "com.atproto.server.getSession").parse_params([("x", "1")]) == {}


def test_body_is_checked_in_the_json_form(catalog: Catalog) -> None:
    """LEX-35: `input` names the body."""
    create = get(catalog, "com.atproto.repo.createRecord")
    record = {"$type": "net.example.x", "link": {"$link": str(Cid.of_data(b""))}}
    body = {"repo": "alice.test", "collection": "net.example.x", "record": record}
    create.check_input(body)
    for change, path in (
        ({"repo": "alice"}, "input/repo"),
        ({"record": [1]}, "input/record"),
        ({"record": {"$link": "x"}}, "input/record"),
        ({"record": {"$type": "blob"}}, "input/record"),
        ({"validate": None}, "input/validate"),
        ({"rkey": "a/b"}, "input/rkey"),
        ({"rkey": "a" * 513}, "input/rkey"),
    ):
        with pytest.raises(LexiconError) as caught:
            create.check_input({**body, **change})
        assert caught.value.path == path
    with pytest.raises(LexiconError, match="input: must be an object"):
        create.check_input([])


def test_swap_record_tells_null_from_missing(catalog: Catalog) -> None:
    """LEX-20, LEX-111: null means that the record must not exist."""
    put = get(catalog, "com.atproto.repo.putRecord")
    body = {"repo": "alice.test", "collection": "net.example.x", "rkey": "self", "record": {}}
    put.check_input(body)
    put.check_input({**body, "swapRecord": None})
    put.check_input({**body, "swapRecord": str(Cid.of_data(b""))})
    with pytest.raises(LexiconError, match="input/swapCommit"):
        put.check_input({**body, "swapCommit": None})


def test_writes_are_a_closed_union(catalog: Catalog) -> None:
    """LEX-23, LEX-110."""
    apply = get(catalog, "com.atproto.repo.applyWrites")
    create = {
        "$type": "com.atproto.repo.applyWrites#create",
        "collection": "net.example.x",
        "value": {},
    }
    apply.check_input({"repo": "alice.test", "writes": [create] * 300})
    for wrong in ({**create, "$type": "net.example.x#create"}, {"collection": "net.example.x"}, 1):
        with pytest.raises(LexiconError, match=r"input/writes/1: "):
            apply.check_input({"repo": "alice.test", "writes": [create, wrong]})


def test_preferences_may_be_of_unlisted_types(catalog: Catalog) -> None:
    """LEX-23: clients keep preferences of their own."""
    put = get(catalog, "app.bsky.actor.putPreferences")
    listed = {"$type": "app.bsky.actor.defs#adultContentPref", "enabled": True}
    put.check_input({"preferences": [listed, {"$type": "net.example.pref#own", "x": 1}]})
    with pytest.raises(LexiconError, match=r"input/preferences/0/enabled"):
        put.check_input({"preferences": [{**listed, "enabled": 1}]})


def test_answers_are_checked_on_demand(catalog: Catalog) -> None:
    """LEX-34: in tests and development."""
    strong = get(catalog, "com.atproto.sync.getLatestCommit")
    strong.check_output({"cid": str(Cid.of_data(b"")), "rev": "3jzfcijpj2z2a"})
    with pytest.raises(LexiconError, match=r"output/rev: must have the format tid"):
        strong.check_output({"cid": str(Cid.of_data(b"")), "rev": "1"})
    get(catalog, "com.atproto.sync.getRepo").check_output(None)


def test_answer_may_be_a_reference(catalog: Catalog) -> None:
    """LEX-9."""
    profile = get(catalog, "app.bsky.actor.getProfile")
    profile.check_output({"did": "did:plc:abc", "handle": "alice.test"})
    with pytest.raises(LexiconError, match="output/handle"):
        profile.check_output({"did": "did:plc:abc", "handle": "alice"})


def test_messages_are_checked_as_data(catalog: Catalog) -> None:
    """LEX-9: frames carry CIDs and bytes, and the header says which message it is."""
    repos = get(catalog, "com.atproto.sync.subscribeRepos")
    cid = Cid.of_data(b"")
    commit = {
        "seq": 1,
        "rebase": False,
        "tooBig": False,
        "repo": "did:plc:abc",
        "commit": cid,
        "rev": "3jzfcijpj2z2a",
        "since": None,
        "blocks": b"x",
        "ops": [{"action": "delete", "path": "a/b", "cid": None, "prev": cid}],
        "blobs": [],
        "prevData": cid,
        "time": "2026-08-20T12:34:56.789Z",
    }
    repos.check_message("#commit", commit)
    repos.check_message("com.atproto.sync.subscribeRepos#commit", commit)
    for change, path in (
        ({"blocks": bytes(2_000_001)}, "message/blocks"),
        ({"commit": str(cid)}, "message/commit"),
        ({"since": ""}, "message/since"),
        ({"ops": [{"action": "delete", "path": "a/b"}]}, "message/ops/0/cid"),
    ):
        with pytest.raises(LexiconError) as caught:
            repos.check_message("#commit", {**commit, **change})
        assert caught.value.path == path
    with pytest.raises(LexiconError, match="#handle is not a message"):
        repos.check_message("#handle", commit)
    with pytest.raises(LexiconError, match="is not a message"):
        get(catalog, "com.atproto.repo.getRecord").check_message("#commit", commit)
