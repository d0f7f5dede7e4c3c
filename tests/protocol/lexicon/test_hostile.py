"""Bounded time and memory whatever strangers send (LEX-12, LEX-28).

The limits are generous: the fault they look for is work that grows with the square of the input.
"""

import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from pds.protocol.lexicon.catalog import Catalog, LexiconError
from pds.protocol.lexicon.links import check_links
from pds.protocol.lexicon.scalars import count_graphemes
from pds.protocol.lexicon.schema import SchemaError, parse_document
from pds.protocol.lexicon.validate import Compiler, Form, run_check
from tests.support_pace import slowness, within

TREE = "net.example.tree"
DOCUMENT = {
    "lexicon": 1,
    "id": TREE,
    "defs": {
        "main": {
            "type": "record",
            "key": "any",
            "record": {
                "type": "object",
                "nullable": ["next"],
                "properties": {
                    "next": {"type": "ref", "ref": "#node"},
                    "kids": {"type": "array", "items": {"type": "union", "refs": ["#node"]}},
                    "text": {"type": "string", "maxGraphemes": 10_000},
                    "least": {"type": "string", "minGraphemes": 300_000},
                    "list": {"type": "array", "items": {"type": "integer"}},
                    "who": {"type": "array", "items": {"type": "string", "format": "did"}},
                },
            },
        },
        "node": {
            "type": "object",
            "nullable": ["next"],
            "properties": {
                "next": {"type": "union", "refs": ["#node"]},
                "kids": {"type": "array", "items": {"type": "ref", "ref": "#node"}},
            },
        },
    },
}
NODE = f"{TREE}#node"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.from_documents([DOCUMENT])


def measured(work: Callable[[], object]) -> tuple[float, int]:
    """Seconds of the processor, and peak bytes, of some work."""
    tracemalloc.start()
    started = time.thread_time()
    try:
        work()
        return time.thread_time() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def nested(levels: int, key: str = "next") -> dict[str, Any]:
    value: dict[str, Any] = {"$type": NODE}
    for _ in range(levels):
        value = {"$type": NODE, key: value if key == "next" else [value]}
    return value


@pytest.mark.parametrize("key", ["next", "kids"])
@pytest.mark.parametrize("levels", [100, 5_000])
@pytest.mark.parametrize("first", ["next", "kids"])
def test_deep_records_are_refused_not_recursed(
    catalog: Catalog, first: str, levels: int, key: str
) -> None:
    """LEX-12: the schema is recursive without end, the check is not."""
    deep = nested(levels, key)
    value = {"$type": TREE, first: deep if first == "next" else [deep]}
    with pytest.raises(LexiconError, match="nested too deeply"):
        catalog.validate_record(TREE, None, value)


def test_records_of_the_full_legal_depth_pass(catalog: Catalog) -> None:
    """The check must not be stricter than the data model (DM-13)."""
    value = {"$type": TREE, "kids": [nested(29)]}
    assert catalog.validate_record(TREE, None, value) == "valid"


def test_deep_json_is_refused_before_the_stack_ends() -> None:
    """Answers may be deeper than records; the interpreter's stack is not endless."""
    find = Catalog.from_documents([DOCUMENT]).definition
    check_links(NODE, find)
    check = Compiler(find, Form.JSON).named(NODE)
    run_check(check, nested(120), "output")
    with pytest.raises(LexiconError, match="nested too deeply"):
        run_check(check, nested(5_000), "output")
    assert sys.getrecursionlimit() <= 1000


def test_a_million_elements_are_checked_without_copies(catalog: Catalog) -> None:
    """Both a valid array and one whose last element is wrong."""
    numbers: list[Any] = [1] * 1_000_000
    seconds, peak = measured(
        lambda: catalog.validate_record(TREE, None, {"$type": TREE, "list": numbers})
    )
    assert seconds < 10 * slowness()
    assert peak < 100_000
    numbers[-1] = "x"
    with pytest.raises(LexiconError, match=r"record/list/999999: must be an integer"):
        catalog.validate_record(TREE, None, {"$type": TREE, "list": numbers})


def test_a_million_unknown_fields_cost_no_memory(catalog: Catalog) -> None:
    """LEX-21: passed over, one by one."""
    value: dict[str, Any] = {f"x{n}": n for n in range(300_000)}
    value["$type"] = TREE
    seconds, peak = measured(lambda: catalog.validate_record(TREE, None, value))
    assert seconds < 5 * slowness()
    assert peak < 100_000


HARD = {
    "flags": "\U0001f1e9" * 250_000,
    "flags apart": ("\U0001f1e9" * 999 + "a") * 250,
    "one cluster of marks": "a" + "\u0301" * 500_000,
    "joiners": "\u200d" * 330_000,
    "joined people": "\U0001f469\u200d" * 140_000,
    "viramas": "\u0915\u094d" * 160_000,
    "prepended": "\u0600" * 500_000,
    "jamo": "\u1100" * 330_000,
    "line ends": "\r\n" * 500_000,
    "ideographs": "漢" * 330_000,
}


@pytest.mark.parametrize("name", sorted(HARD))
def test_graphemes_of_a_megabyte_are_counted_in_bounded_time(catalog: Catalog, name: str) -> None:
    """LEX-28: rows of flags took minutes before they were counted apart."""
    text = HARD[name]

    def check() -> None:
        for field in ("text", "least"):
            with suppress(LexiconError):
                catalog.validate_record(TREE, None, {"$type": TREE, field: text})

    seconds, peak = measured(check)
    assert seconds < 5 * slowness()
    assert peak < 5_000_000
    assert count_graphemes(text, 5) <= len(text)


@pytest.mark.parametrize("text", ["did:plc:" + "a" * 10**6, "did:" + ":" * 10**6, "\0" * 10**6])
def test_formats_take_bounded_time_on_long_texts(catalog: Catalog, text: str) -> None:
    """LEX-26."""
    value = {"$type": TREE, "who": [text]}
    started = time.thread_time()
    with pytest.raises(LexiconError, match=r"record/who/0: must have the format did"):
        catalog.validate_record(TREE, None, value)
    assert within(2, started)


def test_long_chains_of_references_do_not_exhaust_the_stack() -> None:
    """LEX-12: each definition refers to the next, ten thousand times."""
    count = 10_000
    defs: dict[str, Any] = {
        f"d{n}": {"type": "object", "properties": {"p": {"type": "ref", "ref": f"#d{n + 1}"}}}
        for n in range(count)
    }
    defs[f"d{count}"] = {"type": "integer"}
    properties = {"p": {"type": "ref", "ref": "#d0"}}
    defs["main"] = {
        "type": "record",
        "key": "any",
        "record": {"type": "object", "properties": properties},
    }
    chain = Catalog.from_documents([{"lexicon": 1, "id": "net.example.chain", "defs": defs}])
    value: dict[str, Any] = {"p": {"p": {"p": {"p": {"p": {"p": {"p": {"p": {"p": {"p": {}}}}}}}}}}}
    value["$type"] = "net.example.chain"
    assert chain.validate_record("net.example.chain", "a", value) == "valid"
    value["p"]["p"]["p"]["p"]["p"]["p"]["p"]["p"]["p"]["p"]["p"] = 1
    with pytest.raises(LexiconError, match=r"record(/p){11}: must be an object"):
        chain.validate_record("net.example.chain", "a", value)


def test_definitions_nested_as_deep_as_allowed_still_compile() -> None:
    """Deep definitions behind deep references: both bounds at once."""

    def deep(inner: dict[str, Any]) -> dict[str, Any]:
        for _ in range(27):
            inner = {"type": "array", "items": inner}
        return inner

    defs: dict[str, Any] = {f"d{n}": deep({"type": "ref", "ref": f"#d{n + 1}"}) for n in range(40)}
    defs["d40"] = {"type": "integer"}
    properties = {"p": {"type": "ref", "ref": "#d0"}}
    defs["main"] = {
        "type": "record",
        "key": "any",
        "record": {"type": "object", "properties": properties},
    }
    catalog = Catalog.from_documents([{"lexicon": 1, "id": "net.example.deep", "defs": defs}])
    assert not catalog.refused
    assert catalog.validate_record("net.example.deep", "a", {"$type": "net.example.deep", "p": []})


def test_documents_nested_without_end_are_refused() -> None:
    """LEX-12."""
    inner: dict[str, Any] = {"type": "integer"}
    for _ in range(50_000):
        inner = {"type": "object", "properties": {"p": inner}}
    with pytest.raises(SchemaError, match="nested too deeply"):
        parse_document({"lexicon": 1, "id": "net.example.deep", "defs": {"main": inner}})


def test_unknown_collections_leave_nothing_behind(catalog: Catalog) -> None:
    """Names that strangers choose must not fill memory."""

    def ask() -> None:
        for number in range(50_000):
            assert catalog.validate_record(f"net.example.x{number}", "a", {}) == "unknown"
            assert catalog.method(f"net.example.y{number}") is None

    _seconds, peak = measured(ask)
    assert peak < 100_000
