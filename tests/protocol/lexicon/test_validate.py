"""Record validation: LEX-20 to LEX-35, in both forms of value."""

import copy
import json
from typing import Any

import pytest

from pds.protocol.cid import Cid
from pds.protocol.data import from_json
from pds.protocol.lexicon.catalog import Catalog, LexiconError
from pds.protocol.lexicon.links import check_links
from pds.protocol.lexicon.validate import Compiler, Form, run_check
from tests.support import interop_dir, load_vectors
from tests.support_lexicon import loose_data

VECTORS = load_vectors("lexicon/records.json")
COLLECTION = VECTORS["collection"]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.from_documents(VECTORS["documents"])


def judge_json(catalog: Catalog, name: str, value: Any) -> None:
    """Check a value in the JSON form against a named definition."""
    check_links(name, catalog.definition)
    run_check(Compiler(catalog.definition, Form.JSON).named(name), value, "record")


@pytest.mark.parametrize(
    "case", VECTORS["cases"], ids=lambda case: f"{case['rule']} {case['name']}"
)
def test_record_vectors_are_judged_by_the_rules(catalog: Catalog, case: dict[str, Any]) -> None:
    """LEX-4 LEX-5 LEX-7 LEX-12 LEX-20 LEX-21 LEX-23 LEX-24 LEX-25 LEX-26 LEX-27 LEX-28 LEX-29
    LEX-30 LEX-31 LEX-32 LEX-35."""
    data = loose_data(case["data"])
    before = copy.deepcopy(data)
    if "path" not in case:
        assert catalog.validate_record(COLLECTION, case.get("rkey"), data) == "valid"
    else:
        with pytest.raises(LexiconError) as caught:
            catalog.validate_record(COLLECTION, case.get("rkey"), data)
        assert caught.value.path == case["path"]
        assert case["message"] in caught.value.message
        assert str(caught.value) == f"{case['path']}: {caught.value.message}"
    assert data == before


@pytest.mark.parametrize(
    "case",
    [case for case in VECTORS["cases"] if case.get("path") != "rkey"],
    ids=lambda case: f"{case['rule']} {case['name']}",
)
def test_the_json_form_gets_the_same_verdict(catalog: Catalog, case: dict[str, Any]) -> None:
    """Method bodies are checked without being converted."""
    if "path" not in case:
        judge_json(catalog, COLLECTION, case["data"])
        return
    with pytest.raises(LexiconError) as caught:
        judge_json(catalog, COLLECTION, case["data"])
    assert caught.value.path == case["path"]


def test_every_value_rule_has_vectors() -> None:
    """LEX-20 to LEX-35; LEX-22, LEX-33 and LEX-34 have theirs with the methods."""
    rules = {case["rule"] for case in VECTORS["cases"]}
    assert rules >= {f"LEX-{n}" for n in (20, 21, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 35)}


@pytest.mark.parametrize("verdict", ["valid", "invalid"])
def test_published_records_are_judged_as_published(verdict: str) -> None:
    """The 53 interop records (LEX-20 to LEX-35), in both forms."""
    folder = interop_dir() / "lexicon"
    documents = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((folder / "catalog").glob("*.json"))
    ]
    catalog = Catalog.from_documents(documents)
    cases = json.loads((folder / f"record-data-{verdict}.json").read_text(encoding="utf-8"))
    assert len(cases) == {"valid": 3, "invalid": 50}[verdict]
    for case in cases:
        data = loose_data(case["data"])
        if verdict == "valid":
            assert catalog.validate_record("example.lexicon.record", case["rkey"], data) == "valid"
            judge_json(catalog, "example.lexicon.record", case["data"])
            continue
        with pytest.raises(LexiconError):
            catalog.validate_record("example.lexicon.record", case["rkey"], data)
        with pytest.raises(LexiconError):
            judge_json(catalog, "example.lexicon.record", case["data"])


def record(**fields: Any) -> dict[str, Any]:
    return {"$type": COLLECTION, "need": 1, "needNull": None, **fields}


@pytest.mark.parametrize("name", ["raw", "link", "any", "inner", "text", "list"])
def test_data_that_only_looks_like_the_kind_is_refused(catalog: Catalog, name: str) -> None:
    """A link is bytes in memory, a tuple a list, a bytearray bytes: none may pass for another."""
    right: dict[str, Any] = {"raw": b"a", "link": Cid.of_data(b""), "any": {}, "inner": {"a": 1}}
    right |= {"text": "x", "list": [1]}
    wrong = {
        "raw": [Cid.of_raw(b""), bytearray(b"a"), {"$bytes": "YQ"}],
        "link": [bytes(Cid.of_data(b"")), {"$link": str(Cid.of_data(b""))}],
        "any": [Cid.of_data(b""), b"", []],
        "inner": [Cid.of_data(b""), [("a", 1)]],
        "text": [b"x", Cid.of_data(b"")],
        "list": [(1,), {1}],
    }
    assert catalog.validate_record(COLLECTION, None, record(**{name: right[name]})) == "valid"
    for value in wrong[name]:
        with pytest.raises(LexiconError) as caught:
            catalog.validate_record(COLLECTION, None, record(**{name: value}))
        assert caught.value.path == f"record/{name}"


def test_validation_fills_in_no_default_and_strips_nothing(catalog: Catalog) -> None:
    """LEX-21, LEX-22: `range` has a default, `extra` is in no schema."""
    value = record(extra={"deep": [1, None]}, ref={"a": 1, "more": True})
    before = copy.deepcopy(value)
    catalog.validate_record(COLLECTION, None, value)
    assert value == before
    assert "range" not in value


@pytest.mark.parametrize(
    "value",
    [
        {"$link": 1},
        {"$link": "not a cid"},
        {"$link": str(Cid.of_data(b"")), "more": 1},
        {"$link": "QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n"},
        {},
        [],
    ],
)
def test_malformed_json_links_are_refused(catalog: Catalog, value: Any) -> None:
    """DM-20, DM-22."""
    with pytest.raises(LexiconError, match="must be a link"):
        judge_json(catalog, COLLECTION, record(link=value))


@pytest.mark.parametrize("text", ["a", "ab=", "a=b=", "YQ===", "Y Q", "Y-_Q", "YWJj\n", "=", "é"])
def test_malformed_json_bytes_are_refused(catalog: Catalog, text: str) -> None:
    """DM-21: standard alphabet, padding whole or absent."""
    with pytest.raises(LexiconError, match="must be bytes in base64"):
        judge_json(catalog, COLLECTION, record(raw={"$bytes": text}))


@pytest.mark.parametrize("content", [b"a", b"ab", b"abc"])
def test_json_bytes_are_measured_decoded(catalog: Catalog, content: bytes) -> None:
    """LEX-20: lengths count raw bytes, padded or not."""
    import base64

    padded = base64.b64encode(content).decode()
    for text in (padded, padded.rstrip("=")):
        judge_json(catalog, COLLECTION, record(raw={"$bytes": text}))
        assert from_json({"$bytes": text}) == content
    longer = base64.b64encode(content + b"xyz").decode()
    with pytest.raises(LexiconError, match="maximum 3 bytes"):
        judge_json(catalog, COLLECTION, record(raw={"$bytes": longer}))


def test_long_names_are_not_echoed_in_full(catalog: Catalog) -> None:
    """LEX-35: the message is shown to people."""
    with pytest.raises(LexiconError) as caught:
        catalog.validate_record(COLLECTION, None, record(closed={"$type": "x" * 100_000}))
    assert len(caught.value.message) < 300
