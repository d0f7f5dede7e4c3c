"""The data model between JSON and memory: request bodies in, answers out.

`parse_json` reads a body (no floats, no duplicate keys, no lone surrogates, bounded depth).
`from_json` turns the JSON form of a record into `Data`, strictly: `{"$link"}`, `{"$bytes"}`, blobs
and `$type` are checked whatever the schema says, so that what is stored is always valid data
(DM-20, DM-23). `to_json` and `dump_json` are the way back.

Spec: data-model#json-representation
"""

import binascii
import json
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec
import orjson

from pds.errors import ProtocolError
from pds.protocol.cbor import (
    MAX_CONTAINER_ITEMS,
    MAX_DEPTH,
    MAX_KEY_BYTES,
    MIN_INT,
    Data,
    Json,
    json_form,
)
from pds.protocol.cid import Cid, InvalidCid, parse_cid

__all__ = [
    "MAX_JSON_CONTAINERS",
    "MAX_JSON_DEPTH",
    "MAX_RECORD_BYTES",
    "MAX_SAFE_INT",
    "BlobRef",
    "Data",
    "InvalidData",
    "Json",
    "dump_json",
    "find_blob_refs",
    "find_legacy_blobs",
    "from_json",
    "parse_json",
    "record_from_json",
    "to_json",
]

MAX_RECORD_BYTES: Final = 1_000_000
"""Largest record block (DM-13, REPO-80)."""
MAX_SAFE_INT: Final = 2**53 - 1
"""Largest integer that clients may write: every JSON reader holds it exactly (DM-3)."""
MAX_JSON_DEPTH: Final = 48
"""Deepest nesting of a body: a record of full depth, its `$link`, and the request around it."""

MAX_JSON_CONTAINERS: Final = 65_536
"""Most lists and objects in one body. Ours: `[],` is three bytes there and a hundred in memory."""

_EMPTY_BLOB: Final = Cid.of_raw(b"")


class InvalidData(ProtocolError):
    """JSON that is malformed or not in the data model."""


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A reference from a record to a blob (DM-40)."""

    cid: Cid
    mime_type: str
    size: int

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form, as `uploadBlob` answers it (XRPC-81)."""
        return {
            "$type": "blob",
            "ref": {"$link": str(self.cid)},
            "mimeType": self.mime_type,
            "size": self.size,
        }


# --- JSON text --------------------------------------------------------------------------------


def _integral_float(text: str) -> int:
    """Turn `123.0` into 123, exactly; refuse every other float (DM-1)."""
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        raise InvalidData("malformed number") from error
    if not -25 < number.adjusted() < 25 or number != number.to_integral_value():
        if number == 0:
            return 0
        raise InvalidData("floats are not allowed")
    return int(number)


_STRING: Final = rb'"(?:[^"\\]|\\.)*+"'
_MAX_ORJSON_BYTES: Final = 65_536
"""Beyond this the slower writer is used: orjson reserves 280 bytes ahead for each list item."""

_decoder: Final = msgspec.json.Decoder(float_hook=_integral_float)


def parse_json(body: bytes) -> Json:
    """Parse a JSON text into the JSON form of the data model.

    Integral floats become integers; other floats, integers beyond 64 bits, duplicate keys, lone
    surrogates and nesting beyond `MAX_JSON_DEPTH` are refused (DM-1, DM-2, DM-24).
    Raises: InvalidData.
    """
    containers = body.count(b"{") + body.count(b"[")
    if containers > MAX_JSON_CONTAINERS:
        _check_json_containers(body)
    try:
        value: Json = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error.__cause__, InvalidData):
            raise error.__cause__ from None
        raise InvalidData("malformed JSON") from error
    if containers > MAX_JSON_DEPTH:
        _check_json_depth(value, 0)
    written = _write_compact(value, len(body))
    if _may_have_duplicate_keys(body, written):
        _refuse_duplicate_keys(body)
    return value


def _write_compact(value: Json, size: int) -> bytes:
    """Return `value` as compact JSON; refuse integers beyond 64 bits."""
    if size <= _MAX_ORJSON_BYTES:
        try:
            return orjson.dumps(value)
        except TypeError as error:
            raise InvalidData("integer does not fit in 64 bits") from error
    written = msgspec.json.encode(value)
    if re.search(rb"[0-9]{20}", re.sub(_STRING, b"", written)):
        raise InvalidData("integer does not fit in 64 bits")
    return written


def _may_have_duplicate_keys(body: bytes, written: bytes) -> bool:
    """Whether `body` may hold a duplicate key, told without reading it again.

    `written` is the parsed value as compact JSON. What JavaScript clients send is the same text,
    which settles it. Otherwise count `":`: each key brings one, strings bring as many to both
    texts, so a dropped pair shows as a lower count, unless the body writes these two characters
    in another way: with blanks between them, or one of them as an escape.
    """
    return body != written and (
        body.count(b'":') != written.count(b'":')
        or b" :" in body
        or b"\n:" in body
        or b"\t:" in body
        or b"\r:" in body
        or b"\\u00" in body
    )


def _refuse_duplicate_keys(body: bytes) -> None:
    def check(pairs: list[tuple[str, Any]]) -> None:
        if len({key for key, _value in pairs}) != len(pairs):
            raise InvalidData("duplicate key")

    json.loads(body, object_pairs_hook=check, parse_int=_nothing, parse_float=_nothing)


def _nothing(_text: str) -> None:
    return None


def _check_json_containers(body: bytes) -> None:
    """Count lists and objects again without those letters inside strings."""
    bare = re.sub(_STRING, b"", body)
    if bare.count(b"{") + bare.count(b"[") > MAX_JSON_CONTAINERS:
        raise InvalidData("too many lists and objects")


def _check_json_depth(value: Json, depth: int) -> None:
    if type(value) is dict:
        items: Any = value.values()
    elif type(value) is list:
        items = value
    else:
        return
    if depth >= MAX_JSON_DEPTH:
        raise InvalidData("nested too deeply")
    for item in items:
        if type(item) is dict or type(item) is list:
            _check_json_depth(item, depth + 1)


def dump_json(value: object) -> bytes:
    """Return `value` as compact UTF-8 JSON."""
    return orjson.dumps(value)


# --- JSON form to data ------------------------------------------------------------------------


def to_json(value: Data) -> Json:
    """Return the JSON form of `value`; a 64-bit integer stays exact."""
    return json_form(value)


def from_json(value: Any, *, max_int: int = MAX_SAFE_INT) -> Data:
    """Turn the JSON form of a record or value into `Data`, refusing all that is not valid.

    `max_int` bounds integers in both directions: 53 bits for what clients write (DM-3).
    Strings are kept as received (DM-25). Unknown `$` keys are kept (DM-6).
    Raises: InvalidData.
    Spec: data-model#json-representation (DM-20, DM-21, DM-22, DM-7, DM-40, DM-4, DM-5)
    """
    if type(value) is dict:
        return _object(value, 0, max_int)
    if type(value) is list:
        return _array(value, 0, max_int)
    return _scalar(value, max_int)


def record_from_json(value: Any) -> dict[str, Data]:
    """Turn the JSON form of a whole record into data; it must be a map (DM-7).

    Raises: InvalidData.
    """
    record = from_json(value)
    if type(record) is not dict:
        raise InvalidData("a record is an object")
    return record


def _object(value: dict[str, Any], depth: int, max_int: int) -> Data:
    if "$link" in value:
        return _link(value)
    if "$bytes" in value:
        return _bytes(value)
    if depth >= MAX_DEPTH:
        raise InvalidData("nested too deeply")
    if len(value) > MAX_CONTAINER_ITEMS:
        raise InvalidData("too many keys")
    result: dict[str, Data] = {}
    for key, item in value.items():
        if not key:
            raise InvalidData("empty key")
        if len(key) > 2000 and len(key.encode()) > MAX_KEY_BYTES:
            raise InvalidData("key too long")
        kind = type(item)
        if kind is str:
            result[key] = item
        elif kind is dict:
            result[key] = _object(item, depth + 1, max_int)
        elif kind is list:
            result[key] = _array(item, depth + 1, max_int)
        else:
            result[key] = _scalar(item, max_int)
    if "$type" in result:
        _check_type(result)
    return result


def _array(value: list[Any], depth: int, max_int: int) -> Data:
    if depth >= MAX_DEPTH:
        raise InvalidData("nested too deeply")
    if len(value) > MAX_CONTAINER_ITEMS:
        raise InvalidData("too many items")
    result: list[Data] = []
    for item in value:
        kind = type(item)
        if kind is str:
            result.append(item)
        elif kind is dict:
            result.append(_object(item, depth + 1, max_int))
        elif kind is list:
            result.append(_array(item, depth + 1, max_int))
        else:
            result.append(_scalar(item, max_int))
    return result


def _scalar(value: Any, max_int: int) -> Data:
    kind = type(value)
    if kind is int:
        if not -max_int <= value <= max_int and not MIN_INT == value == -max_int - 1:
            raise InvalidData("integer too large")
    elif kind is not str and kind is not bool and value is not None:
        raise InvalidData(f"not in the data model: {kind.__name__}")
    return value  # type: ignore[no-any-return]


def _link(value: dict[str, Json]) -> Cid:
    text = value["$link"]
    if len(value) != 1 or type(text) is not str:
        raise InvalidData("a $link has one key and a string")
    try:
        return parse_cid(text)
    except InvalidCid as error:
        raise InvalidData(f"bad $link: {error}") from error


def _bytes(value: dict[str, Json]) -> bytes:
    text = value["$bytes"]
    if len(value) != 1 or type(text) is not str:
        raise InvalidData("$bytes has one key and a string")
    stripped = text.rstrip("=")
    # Padding is optional, non-zero left-over bits are tolerated (DM-21); anything else is not.
    padding = len(text) - len(stripped)
    if padding and (len(text) % 4 or padding > 2):
        raise InvalidData("bad $bytes: padding")
    try:
        return binascii.a2b_base64(stripped + "=" * (-len(stripped) % 4), strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidData("bad $bytes: not base64") from error


def _check_type(value: dict[str, Data]) -> None:
    name = value["$type"]
    if type(name) is not str or not name:
        raise InvalidData("$type must be a non-empty string")
    if name == "blob":
        _blob_ref(value)


# --- Blobs ------------------------------------------------------------------------------------


def _blob_ref(value: dict[str, Data]) -> BlobRef:
    """Check the four keys of a blob (DM-40) and return the reference."""
    cid, mime_type, size = value.get("ref"), value.get("mimeType"), value.get("size")
    if len(value) != 4 or type(cid) is not Cid or not cid.is_blessed_raw:
        raise InvalidData("a blob has $type, ref, mimeType and size, and ref is a raw CID")
    if type(mime_type) is not str or "/" not in mime_type:
        raise InvalidData("bad blob: mimeType")
    if type(size) is not int or size < 0 or (size == 0) != (cid == _EMPTY_BLOB):
        raise InvalidData("bad blob: size")
    return BlobRef(cid, mime_type, size)


def find_blob_refs(value: Data) -> list[BlobRef]:
    """Return the blob references of a record at any depth, in order of appearance (DM-41).

    Objects of type blob that are not well formed (foreign records) are passed over.
    """
    refs = []
    for found in _maps(value):
        if found.get("$type") == "blob":
            try:
                refs.append(_blob_ref(found))
            except InvalidData:
                # Only foreign records can hold one, and nothing can be fetched by it.
                continue
    return refs


def find_legacy_blobs(value: Data) -> list[BlobRef]:
    """Return blobs in the form before 2023, `{cid, mimeType}`, as references of size -1 (DM-42).

    New records may not contain any; imported ones may.
    """
    refs = []
    for found in _maps(value):
        if len(found) == 2 and "cid" in found and "mimeType" in found:
            text, mime_type = found["cid"], found["mimeType"]
            if type(text) is str and type(mime_type) is str:
                try:
                    refs.append(BlobRef(parse_cid(text), mime_type, -1))
                except InvalidCid:
                    # Two keys of these names and a text that is no CID: ordinary data.
                    continue
    return refs


def _maps(value: Data) -> list[dict[str, Data]]:
    """Return every map in `value`, outer before inner, in order."""
    found: list[dict[str, Data]] = []
    _collect_maps(value, found)
    return found


def _collect_maps(value: Any, found: list[dict[str, Data]]) -> None:
    if type(value) is dict:
        found.append(value)
        value = value.values()
    elif type(value) is not list:
        return
    for item in value:
        if type(item) is dict or type(item) is list:
            _collect_maps(item, found)
