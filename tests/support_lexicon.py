"""Values made from schemas: valid ones, and ones with a single change whose verdict is known.

`ValueMaker` writes JSON-form values that a definition accepts; `mutations` changes one place of
such a value and says whether the result is still valid. Both are deterministic for a seed. Used to
compare two catalogs, to compare the two forms of value, and to check the answers of handlers.
"""

import base64
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pds.protocol.cid import Cid, parse_cid
from pds.protocol.lexicon.catalog import Catalog
from pds.protocol.lexicon.definitions import (
    ArrayDef,
    BlobDef,
    BooleanDef,
    BytesDef,
    CidLinkDef,
    FieldDef,
    IntegerDef,
    ObjectDef,
    RecordDef,
    RefDef,
    StringDef,
    UnionDef,
    UnknownDef,
)
from tests.support import ROOT

DATA_CID = str(Cid.of_data(b"\xa0"))
BLOB_CID = str(Cid.of_raw(b"blob"))
UNLISTED = "net.example.nowhere#thing"

EXAMPLES = {
    "at-identifier": ["did:plc:z72i7hdynmk6r22z27h6tvur", "alice.test", "did:web:a.example.com"],
    "at-uri": [
        "at://did:plc:z72i7hdynmk6r22z27h6tvur/app.bsky.feed.post/3kznmn7xqxl22",
        "at://alice.example.com/net.example.thing/self",
        "at://did:web:example.com",
    ],
    "cid": [DATA_CID, BLOB_CID],
    "datetime": ["2026-08-20T12:34:56.789Z", "1985-04-12T23:20:50+01:00", "2024-02-29T00:00:00Z"],
    "did": ["did:plc:z72i7hdynmk6r22z27h6tvur", "did:web:example.com"],
    "handle": ["alice.test", "xn--ls8h.example.com"],
    "language": ["en", "pt-BR", "zh-Hant-TW"],
    "nsid": ["app.bsky.feed.post", "net.example.fooBar"],
    "record-key": ["self", "3kznmn7xqxl22", "a:b~c_d.e-f"],
    "tid": ["3kznmn7xqxl22", "2222222222222"],
    "uri": ["https://example.com/a?b=c#d", "did:plc:abc", "mailto:alice@example.com"],
}
"""Texts of each format."""

BROKEN = {
    "at-identifier": "alice",
    "at-uri": "at://did:plc:abc/app.bsky.feed.post/",
    "cid": "QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n",
    "datetime": "2023-02-30T00:00:00Z",
    "did": "did:PLC:abc",
    "handle": "-alice.test",
    "language": "EN",
    "nsid": "app.bsky",
    "record-key": "..",
    "tid": "3kznmn7xqxl2",
    "uri": "example.com",
}
"""A text that does not have the format."""

CLUSTERS = ["a", "Z", " ", "é", "漢", "\U0001f600", "🇩🇪", "👩\u200d👩\u200d👦", "e\u0301", "क्ष"]


def published_dir() -> Path:
    """The published schema documents, which lie beside the repository; skips when absent."""
    found = ROOT.parent / "shared" / "lexicons"
    if not found.is_dir():
        pytest.skip("the published schema documents are not beside the repository")
    return found


def loose_data(value: Any) -> Any:
    """The JSON form as data, with every rule left out except the shapes of links and bytes."""
    if isinstance(value, dict):
        if value.keys() == {"$link"} and isinstance(value["$link"], str):
            return parse_cid(value["$link"])
        if value.keys() == {"$bytes"} and isinstance(value["$bytes"], str):
            text = value["$bytes"].rstrip("=")
            return base64.b64decode(text + "=" * (-len(text) % 4))
        return {key: loose_data(item) for key, item in value.items()}
    if isinstance(value, list):
        return [loose_data(item) for item in value]
    return value


class ValueMaker:
    """Writes valid values of the definitions of a catalog, in the JSON form."""

    def __init__(self, catalog: Catalog, seed: object) -> None:
        self.catalog = catalog
        self.random = Random(repr(seed))

    def named(self, name: str, depth: int = 0) -> Any:
        """A value of the definition called `name`."""
        definition = self.catalog.definition(name)
        if isinstance(definition, RecordDef):
            return {"$type": name, **self.value(definition.record, depth)}
        return self.value(definition, depth)

    def value(self, definition: Any, depth: int = 0) -> Any:
        """A value of a definition; deep down only what is required."""
        match definition:
            case BooleanDef():
                return self.random.random() < 0.5 if definition.const is None else definition.const
            case IntegerDef():
                return self._integer(definition)
            case StringDef():
                return self.text(definition)
            case BytesDef():
                low, high = definition.min_length or 0, definition.max_length
                size = self.random.choice([low, low + 1, min(low + 50, high or low + 50)])
                content = self.random.randbytes(min(size, high if high is not None else size))
                return {"$bytes": base64.b64encode(content).decode().rstrip("=")}
            case CidLinkDef():
                return {"$link": self.random.choice([DATA_CID, BLOB_CID])}
            case BlobDef():
                return self._blob(definition)
            case UnknownDef():
                return {"$type": UNLISTED, "a": [1, {"b": None}]}
            case RefDef():
                return self.named(definition.target, depth)
            case UnionDef():
                return self._union(definition, depth)
            case ArrayDef():
                return self._array(definition, depth)
            case ObjectDef():
                return self._object(definition, depth)
        raise AssertionError(definition)

    def text(self, definition: StringDef) -> str:
        """A string that keeps every limit, often right at one."""
        if definition.const is not None:
            return definition.const
        if definition.enum is not None:
            return self.random.choice(definition.enum)
        low, high = definition.min_length or 0, definition.max_length
        if definition.format is not None:
            examples = EXAMPLES[definition.format]
            return self.random.choice([e for e in examples if low <= len(e) <= (high or 8192)])
        if definition.known_values and self.random.random() < 0.5:
            return self.random.choice(definition.known_values)
        most = definition.max_graphemes if definition.max_graphemes is not None else 40
        least = max(low, definition.min_graphemes or 0)
        count = self.random.choice([least, most, self.random.randint(least, max(least, most))])
        text = "".join(self.random.choice(CLUSTERS) for _ in range(count))
        if high is not None and len(text.encode()) > high:
            text = "x" * max(least, min(high, count))
        return text

    def _integer(self, definition: IntegerDef) -> int:
        if definition.const is not None:
            return definition.const
        if definition.enum is not None:
            return self.random.choice(definition.enum)
        low = -(2**53 - 1) if definition.minimum is None else definition.minimum
        high = 2**53 - 1 if definition.maximum is None else definition.maximum
        near_zero = min(max(0, low), high)
        return self.random.choice([low, high, near_zero, self.random.randint(low, high)])

    def _blob(self, definition: BlobDef) -> dict[str, Any]:
        pattern = self.random.choice(definition.accept or ("*/*",))
        mime_type = pattern.replace("*/*", "text/plain").replace("*", "x-any")
        size = self.random.choice([1, definition.max_size or 5])
        return {"$type": "blob", "ref": {"$link": BLOB_CID}, "mimeType": mime_type, "size": size}

    def _union(self, definition: UnionDef, depth: int) -> dict[str, Any]:
        if not definition.closed and (not definition.targets or self.random.random() < 0.1):
            return {"$type": UNLISTED, "anything": 1}
        target = self.random.choice(definition.targets)
        return {**self.named(target, depth), "$type": target}

    def _array(self, definition: ArrayDef, depth: int) -> list[Any]:
        low = definition.min_length or 0
        high = low if depth > 4 else min(low + 3, definition.max_length or low + 3)
        count = self.random.randint(low, max(low, high))
        return [self.value(definition.items, depth + 1) for _ in range(count)]

    def _object(self, definition: ObjectDef, depth: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        share = 0.7 / (depth + 1)
        for name, field in definition.properties.items():
            if name in definition.nullable and self.random.random() < 0.3:
                value[name] = None
            elif name in definition.required or self.random.random() < share:
                value[name] = self.value(field, depth + 1)
        return value


@dataclass(frozen=True)
class Mutation:
    """A value with one change, and whether the schema still accepts it."""

    label: str
    value: Any
    is_valid: bool


@dataclass(frozen=True)
class _Place:
    path: tuple[str | int, ...]
    definition: FieldDef
    is_nullable: bool


_STRANGERS: list[Any] = [True, 7, "text", [], {}, {"$link": DATA_CID}, {"$bytes": "YQ"}]


def mutations(catalog: Catalog, name: str, value: Any, seed: object) -> Iterator[Mutation]:
    """Yield changes of a valid JSON-form value of `name`: one at each place, chosen by `seed`."""
    random = Random(repr(seed))
    definition = catalog.definition(name)
    if isinstance(definition, RecordDef):
        yield Mutation("$type of another record", {**value, "$type": UNLISTED}, is_valid=False)
        yield Mutation("no $type", {k: v for k, v in value.items() if k != "$type"}, is_valid=False)
        definition = definition.record
    for place in _places(catalog, definition, value, ()):
        changes = list(_changes(catalog, place, _at(value, place.path)))
        for label, changed, is_valid in random.sample(changes, min(2, len(changes))):
            where = "/".join(map(str, place.path))
            yield Mutation(f"{where}: {label}", _replaced(value, place.path, changed), is_valid)


def _places(
    catalog: Catalog,
    definition: Any,
    value: Any,
    path: tuple[str | int, ...],
    *,
    null: bool = False,
) -> Iterator[_Place]:
    while isinstance(definition, RefDef | UnionDef):
        yield _Place(path, definition, null)
        if isinstance(definition, UnionDef):
            target = None if value is None else value.get("$type")
            definition = catalog.definition(target) if target in definition.targets else None
        else:
            definition = catalog.definition(definition.target)
        definition = definition.record if isinstance(definition, RecordDef) else definition
    if definition is None:
        return
    yield _Place(path, definition, null)
    if value is None:
        return
    if isinstance(definition, ArrayDef):
        for index, item in enumerate(value):
            yield from _places(catalog, definition.items, item, (*path, index))
    elif isinstance(definition, ObjectDef):
        for key, field in definition.properties.items():
            if key in value:
                yield from _places(
                    catalog, field, value[key], (*path, key), null=key in definition.nullable
                )


def _changes(catalog: Catalog, place: _Place, value: Any) -> Iterator[tuple[str, Any, bool]]:
    """Yield (label, value to stand in this place instead, whether it is valid there)."""
    definition = place.definition
    if isinstance(definition, RefDef):
        if isinstance(catalog.definition(definition.target), ObjectDef) and value is not None:
            yield "its own $type", {**value, "$type": definition.target}, True
            yield "a contradicting $type", {**value, "$type": UNLISTED}, False
        return
    if place.path:
        yield "null", None, place.is_nullable
    for stranger in _STRANGERS:
        if not _is_of_kind(definition, stranger):
            yield f"a {type(stranger).__name__} {stranger!r}", stranger, False
    if value is None:
        return
    match definition:
        case IntegerDef() if definition.minimum is not None:
            yield "below the minimum", definition.minimum - 1, False
        case IntegerDef():
            yield "beyond 53 bits", 2**53, False
        case StringDef() if definition.format is not None:
            yield "not of the format", BROKEN[definition.format], False
        case StringDef() if definition.max_graphemes is not None:
            yield "too many graphemes", "y" * (definition.max_graphemes + 1), False
        case StringDef() if definition.max_length is not None:
            yield "too many bytes", "é" * (definition.max_length // 2 + 1), False
        case BlobDef():
            yield "without size", {k: v for k, v in value.items() if k != "size"}, False
            if definition.max_size is not None:
                yield "too big", {**value, "size": definition.max_size + 1}, False
                yield "not accepted", {**value, "mimeType": "audio/x-no"}, False
        case ArrayDef() if definition.max_length is not None and value:
            yield "too many items", value[:1] * (definition.max_length + 1), False
        case UnionDef():
            yield "no $type", {k: v for k, v in value.items() if k != "$type"}, False
            yield "unlisted $type", {"$type": UNLISTED}, not definition.closed
        case ObjectDef():
            yield "an extra field", {**value, "xExtra": [1, None]}, True
            for key in definition.required:
                yield f"no {key}", {k: v for k, v in value.items() if k != key}, False
        case _:
            return


def _is_of_kind(definition: FieldDef, value: Any) -> bool:
    """Whether a stranger might be valid here after all, so that no verdict is claimed."""
    match definition:
        case BooleanDef():
            return isinstance(value, bool)
        case IntegerDef():
            return isinstance(value, int) and not isinstance(value, bool)
        case StringDef():
            return isinstance(value, str)
        case ArrayDef():
            return isinstance(value, list)
        case BytesDef():
            return isinstance(value, dict) and "$bytes" in value
        case CidLinkDef():
            return isinstance(value, dict) and "$link" in value
        case ObjectDef() | UnknownDef():
            return value == {}
        case _:
            return False


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def _replaced(value: Any, path: tuple[str | int, ...], changed: Any) -> Any:
    if not path:
        return changed
    result = copy.deepcopy(value)
    _at(result, path[:-1])[path[-1]] = changed
    return result
