"""Schema documents: LEX-1 to LEX-11, from our own vectors and the published ones."""

import json
from typing import Any

import pytest

from pds.protocol.lexicon.catalog import Catalog
from pds.protocol.lexicon.definitions import (
    IntegerDef,
    MethodDef,
    ObjectDef,
    PermissionSetDef,
    RefDef,
    StringDef,
    UnionDef,
)
from pds.protocol.lexicon.schema import SchemaError, parse_document
from tests.support import interop_dir, load_vectors

VECTORS = load_vectors("lexicon/documents.json")


def field(definition: dict[str, Any]) -> Any:
    """The definition of a property, parsed."""
    document = parse_document(
        {
            "lexicon": 1,
            "id": "net.example.thing",
            "defs": {"main": {"type": "object", "properties": {"p": definition}}},
        }
    )
    main = document.defs["main"]
    assert isinstance(main, ObjectDef)
    return main.properties["p"]


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: f"{case['rule']} {case['name']}")
def test_document_vectors_are_judged_by_the_rules(case: dict[str, Any]) -> None:
    """LEX-1 LEX-2 LEX-3 LEX-4 LEX-5 LEX-6 LEX-7 LEX-8 LEX-9 LEX-10 LEX-11 LEX-12."""
    if "error" not in case:
        assert parse_document(case["document"]).id == case["document"]["id"]
        return
    with pytest.raises(SchemaError) as caught:
        parse_document(case["document"])
    assert case["error"] in str(caught.value)
    assert str(caught.value).startswith("document")


def test_every_document_rule_has_vectors_of_both_verdicts() -> None:
    """LEX-1 to LEX-10: each rule accepts something and refuses something."""
    for number in range(1, 11):
        verdicts = {"error" in case for case in VECTORS if case["rule"] == f"LEX-{number}"}
        assert verdicts == {True, False}, number


@pytest.mark.parametrize("verdict", ["valid", "invalid"])
def test_published_documents_are_judged_as_published(verdict: str) -> None:
    """The interop files for schema documents (LEX-1, LEX-3, LEX-6)."""
    path = interop_dir() / "lexicon" / f"lexicon-{verdict}.json"
    cases = json.loads(path.read_text(encoding="utf-8"))
    assert cases
    for case in cases:
        refused = Catalog.from_documents([case["lexicon"]]).refused
        assert bool(refused) == (verdict == "invalid"), case["name"]


def test_published_sample_documents_are_accepted() -> None:
    """One sample of each primary type (LEX-2)."""
    paths = sorted((interop_dir() / "lexicon" / "catalog").glob("*.json"))
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    catalog = Catalog.from_documents(documents)
    assert not catalog.refused
    assert len(catalog.documents) == len(documents) == 5


def test_references_are_written_out_in_full() -> None:
    """LEX-4: against the document that contains them; a main definition has the bare NSID."""
    for ref, target in {
        "#name": "net.example.thing#name",
        "#main": "net.example.thing",
        "net.example.other": "net.example.other",
        "net.example.other#main": "net.example.other",
        "net.example.other#name": "net.example.other#name",
    }.items():
        assert field({"type": "ref", "ref": ref}) == RefDef(target)
        assert field({"type": "union", "refs": [ref]}) == UnionDef((target,))


def test_constraints_are_kept() -> None:
    """LEX-7."""
    assert field({"type": "integer", "minimum": -1, "maximum": 5, "default": 0}) == IntegerDef(
        minimum=-1, maximum=5, default=0
    )
    definition = {
        "type": "string",
        "format": "uri",
        "minLength": 1,
        "maxLength": 9,
        "minGraphemes": 1,
        "maxGraphemes": 5,
        "knownValues": ["a:b"],
        "default": "a:b",
    }
    assert field(definition) == StringDef("uri", 1, 9, 1, 5, None, ("a:b",), None, "a:b")


def test_method_parts_are_kept() -> None:
    """LEX-8, LEX-9."""
    document = parse_document(
        {
            "lexicon": 1,
            "id": "net.example.ask",
            "defs": {
                "main": {
                    "type": "procedure",
                    "parameters": {"type": "params", "properties": {"a": {"type": "string"}}},
                    "input": {"encoding": "*/*"},
                    "output": {
                        "encoding": "application/json",
                        "schema": {"type": "ref", "ref": "#answer"},
                    },
                    "errors": [{"name": "Gone"}],
                },
                "answer": {"type": "object"},
            },
        }
    )
    main = document.defs["main"]
    assert isinstance(main, MethodDef)
    assert main.kind == "procedure"
    assert main.errors == ("Gone",)
    assert main.input is not None
    assert main.input.schema is None
    assert main.output is not None
    assert main.output.schema == RefDef("net.example.ask#answer")
    assert document.full_names().keys() == {"net.example.ask", "net.example.ask#answer"}


def test_permission_set_keeps_texts_and_entries_unjudged() -> None:
    """Which entries count is decided where the set is used."""
    document = parse_document(
        {
            "lexicon": 1,
            "id": "net.example.authAll",
            "defs": {
                "main": {
                    "type": "permission-set",
                    "title": "All",
                    "title:lang": {"fr": "Tout"},
                    "detail": "Everything",
                    "permissions": [
                        {"type": "permission", "resource": "repo", "collection": ["net.example.x"]},
                        {"type": "permission", "resource": "strange", "odd": [{}]},
                    ],
                }
            },
        }
    )
    main = document.defs["main"]
    assert isinstance(main, PermissionSetDef)
    assert (main.title, main.detail) == ("All", "Everything")
    assert main.title_by_language == {"fr": "Tout"}
    assert main.detail_by_language is None
    assert [(p.resource, dict(p.fields)) for p in main.permissions] == [
        ("repo", {"collection": ["net.example.x"]}),
        ("strange", {"odd": [{}]}),
    ]


def test_unknown_primary_type_spoils_only_its_own_document() -> None:
    """LEX-11: a type of the future, such as `space`, is tolerated."""
    space = {"type": "space", "key": "any", "name": "x", "collections": ["net.example.note"]}
    note = {"type": "record", "key": "any", "record": {"type": "object"}}
    catalog = Catalog.from_documents(
        [
            {
                "lexicon": 1,
                "id": "net.example.forum",
                "defs": {"main": space, "x": {"type": "token"}},
            },
            {"lexicon": 1, "id": "net.example.note", "defs": {"main": note}},
        ]
    )
    assert catalog.refused.keys() == {"net.example.forum"}
    assert catalog.definition("net.example.forum#x") is None
    assert catalog.validate_record("net.example.forum", "a", {}) == "unknown"
    assert (
        catalog.validate_record("net.example.note", "a", {"$type": "net.example.note"}) == "valid"
    )
