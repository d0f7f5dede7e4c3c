"""The schema documents that ship with the program."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pds.errors import ConfigError
from pds.protocol.lexicon.catalog import Catalog, LexiconError
from pds.protocol.lexicon.definitions import MethodDef, RecordDef
from pds.services import lexicons
from pds.services.lexicons import lexicon_folder, load_catalog
from tests.support_pace import slowness

BUNDLED_RECORDS = {
    *(f"app.bsky.actor.{name}" for name in ("contentVisibilityDeclaration", "profile", "status")),
    *(
        f"app.bsky.feed.{name}"
        for name in ("generator", "like", "post", "postgate", "repost", "threadgate")
    ),
    *(
        f"app.bsky.graph.{name}"
        for name in ("block", "follow", "list", "listblock", "listitem", "starterpack")
    ),
    "app.bsky.graph.verification",
    "app.bsky.labeler.service",
    "app.bsky.notification.declaration",
    "chat.bsky.actor.declaration",
    "com.atproto.lexicon.schema",
    "com.germnetwork.declaration",
}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def test_every_document_is_usable(catalog: Catalog) -> None:
    """LEX-11: nothing refused, and every reference leads somewhere."""
    assert not catalog.refused
    catalog.check_all_links()


def test_documents_lie_where_their_id_says(catalog: Catalog) -> None:
    """So that a method's schema can be found by hand."""
    folder = lexicon_folder()
    for path in folder.rglob("*.json"):
        nsid = ".".join(path.relative_to(folder).with_suffix("").parts)
        assert json.loads(path.read_text(encoding="utf-8"))["id"] == nsid
        assert nsid in catalog.documents


def test_documents_hold_facts_only() -> None:
    """No descriptions: prose belongs to its authors."""

    def walk(value: object) -> None:
        if isinstance(value, dict):
            assert not isinstance(value.get("description"), str)
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    for path in lexicon_folder().rglob("*.json"):
        walk(json.loads(path.read_text(encoding="utf-8")))


def test_bundled_types_of_record(catalog: Catalog) -> None:
    """LEX-64: those of the reference, and one that is newer."""
    found = {nsid for nsid in catalog.documents if isinstance(catalog.definition(nsid), RecordDef)}
    assert found == BUNDLED_RECORDS


@pytest.mark.parametrize(
    "group",
    ["admin", "identity", "label", "lexicon", "moderation", "repo", "server", "sync", "temp"],
)
def test_all_methods_of_a_group_are_described(catalog: Catalog, group: str) -> None:
    """LEX-100."""
    counts = {"admin": 15, "identity": 9, "label": 2, "lexicon": 1, "moderation": 1, "repo": 10}
    counts |= {"server": 25, "sync": 16, "temp": 7}
    methods = [
        nsid
        for nsid in catalog.documents
        if nsid.startswith(f"com.atproto.{group}.")
        and isinstance(catalog.definition(nsid), MethodDef)
    ]
    assert len(methods) == counts[group]
    assert all(catalog.method(nsid) is not None for nsid in methods)


def test_loading_is_fast() -> None:
    """It is part of every start: 16 ms measured, and compiling waits for the first use."""
    best = 1.0
    for _ in range(5):
        started = time.thread_time()
        load_catalog()
        best = min(best, time.thread_time() - started)
    assert best < 0.3 * slowness()


def test_damaged_document_stops_the_start(tmp_path: Path) -> None:
    """The server must not run with a schema missing."""
    file = tmp_path / "net" / "example" / "thing.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"lexicon": 1, "id": "net.example.thing", "defs": {"main": {"type": "x"}}}')
    with pytest.raises(ConfigError, match=r"net\.example\.thing: .*not a type of data"):
        load_catalog(tmp_path)
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"thing\.json: malformed JSON"):
        load_catalog(tmp_path)


def test_missing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without its data says so."""
    monkeypatch.setattr(lexicons, "__file__", str(tmp_path / "pds" / "services" / "lexicons.py"))
    with pytest.raises(ConfigError, match="install again"):
        load_catalog()
    installed = tmp_path / "pds" / "lexicons" / "com" / "atproto"
    installed.mkdir(parents=True)
    assert lexicon_folder() == installed.parents[1]


def test_schema_documents_are_checked_before_they_are_published(catalog: Catalog) -> None:
    """LEX-67: under their own name and usable; types newer than this program pass."""
    collection = "com.atproto.lexicon.schema"

    def publish(rkey: str | None, **fields: Any) -> None:
        document = {
            "$type": collection,
            "lexicon": 1,
            "id": "net.example.thing",
            "defs": {"main": {"type": "string"}},
            **fields,
        }
        assert catalog.validate_record(collection, rkey, document) == "valid"

    publish("net.example.thing")
    publish(None)
    publish("net.example.thing", defs={"main": {"type": "space", "key": "any"}})
    for rkey, fields, error in (
        ("net.example.other", {}, "rkey: must be the id of the document"),
        ("self", {}, "rkey: must be an NSID"),
        ("net.example.thing", {"lexicon": 2}, "record: lexicon must be 1"),
        ("net.example.thing", {"lexicon": "1"}, "record/lexicon: must be an integer"),
        ("net.example.thing", {"defs": {}}, "record/defs: needs at least one definition"),
        (None, {"id": 1}, "record: id must be a string"),
        (
            "net.example.thing",
            {"defs": {"main": {"type": "string", "maxLength": -1}}},
            "record/defs/main: maxLength must not be negative",
        ),
    ):
        with pytest.raises(LexiconError) as caught:
            publish(rkey, **fields)
        assert str(caught.value) == error
