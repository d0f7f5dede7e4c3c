"""DAG-CBOR (DRISL): the one byte form of every record, tree node, commit and event.

A value has exactly one encoding, because its hash is its address: shortest numbers and lengths,
definite lengths only, map keys in order of length and then bytes, no floats, no tag but 42 (a
link). Decoding refuses everything else, so that what was decoded encodes to the same bytes again.

`encode_python` and `decode_python` are the definition of what is valid. When the package cbrrr is
installed, `encode` and `decode` use it as an accelerator and add the checks that it lacks: floats,
integers beyond 64 bits signed, CID structure, empty keys, and the limits below. Both must agree on
every input; `tests/protocol/test_cbor.py` compares them.

cbrrr allocates a list as long as its header says before it reads the items, so that nested headers
could claim far more memory than the input has bytes; `_is_affordable` sends such input to the
Python decoder, which never allocates ahead.

Spec: data-model#relationship-with-dasl-and-ipld (DM-10, DM-11, DM-12, DM-13, DM-4)
"""

import base64
from typing import Any, Final, TypeAlias

from pds.errors import ProtocolError
from pds.protocol.cid import BLESSED_CID_BYTES, MAX_CID_BYTES, Cid, InvalidCid, decode_cid

Data: TypeAlias = "bool | int | str | bytes | Cid | list[Data] | dict[str, Data] | None"
"""A value of the data model in memory. Links are `Cid`, which is tested before `bytes`."""

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"
"""A value of the data model as JSON has it: links are `{"$link"}`, bytes are `{"$bytes"}`."""

MAX_DEPTH: Final = 32
"""Deepest nesting of lists and maps (DM-13)."""
MAX_CONTAINER_ITEMS: Final = 131_072
"""Most items of one list, or pairs of one map (DM-13)."""
MAX_CONTAINERS: Final = 131_072
"""Most lists and maps in one value. Ours: an empty list is one byte here and 64 in memory."""
MAX_KEY_BYTES: Final = 8_192
"""Longest map key in UTF-8 (DM-13)."""
MIN_INT: Final = -(2**63)
MAX_INT: Final = 2**63 - 1
"""Integers are signed 64-bit (DM-2); what clients write is narrower, see `pds.protocol.data`."""

_MAX_CLAIM_BYTES: Final = 16_000_000
"""Memory that the accelerator may be made to allocate ahead by list headers."""


class CborError(ProtocolError):
    """Not canonical DAG-CBOR, not a value of the data model, or over a limit."""


def _load_accelerator() -> Any:
    try:
        from cbrrr import _cbrrr
    except ImportError:  # optional: the extra `fast`
        return None
    return _cbrrr


_accelerator: Final = _load_accelerator()

# Bytes that matter to the checks below; all others are deleted at once by `bytes.translate`.
_CONTAINER_HEADS: Final = bytes([*range(0x80, 0x9C), *range(0xA0, 0xBC)])
_LONG_LIST_HEADS: Final = bytes(range(0x98, 0x9C))
_CHECKED_HEADS: Final = bytes([0x1B, 0x3B, 0x60, 0xFB])  # 64-bit integers, empty string, float
_NO_CONTAINER_HEADS: Final = bytes(set(range(256)) - set(_CONTAINER_HEADS))
_NO_LONG_LIST_HEADS: Final = bytes(set(range(256)) - set(_LONG_LIST_HEADS))
_HARMLESS: Final = bytes(set(range(256)) - set(_CONTAINER_HEADS) - set(_CHECKED_HEADS))


def encode(value: Data) -> bytes:
    """Return the canonical bytes of `value`.

    Only exact types are taken: no subclasses, tuples or floats. `value` must be a tree.
    Raises: CborError.
    """
    if _accelerator is None:
        return encode_python(value)
    try:
        content: bytes = _accelerator.encode_dag_cbor(value, Cid, False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CborError(f"cannot be encoded: {error}") from error
    if not _needs_no_check(content):
        _check_value(value, 0, [MAX_CONTAINERS])
    return content


def encode_trusted(value: Data) -> bytes:
    """Return the canonical bytes of a value that this host put together itself, and fast.

    For maps of a fixed shape around content that was checked before: a frame carries a CAR of some
    kilobytes, which makes `encode` look at every part again. Not for anything of a client's.
    Raises: CborError.
    """
    if _accelerator is None:
        return encode_python(value)
    try:
        return _accelerator.encode_dag_cbor(value, Cid, False)  # type: ignore[no-any-return]
    except (TypeError, ValueError, RecursionError) as error:
        raise CborError(f"cannot be encoded: {error}") from error


def decode(content: bytes) -> Data:
    """Return the value of `content`, which must be exactly one canonical item.

    Raises: CborError.
    """
    if _accelerator is None or not _is_affordable(content):
        return decode_python(content)
    value, end = _decode_accelerated(content)
    if end != len(content):
        raise CborError("bytes after the end of the value")
    if not _needs_no_check(content):
        _check_value(value, 0, [MAX_CONTAINERS])
    return value


def decode_prefix(content: bytes, at: int = 0) -> tuple[Data, int]:
    """Decode the item that starts at `at`; return it and the position behind it.

    Raises: CborError.
    """
    rest = content[at:] if at else content
    if _accelerator is None or not _is_affordable(rest):
        value, end = _decode_item_python(rest)
    else:
        value, end = _decode_accelerated(rest)
        _check_value(value, 0, [MAX_CONTAINERS])
    return value, at + end


def decode_trusted(content: bytes) -> Data:
    """Decode a block that this host encoded itself, as fast as possible.

    The accelerator's own checks remain; limits, floats and CID structure are not looked at again.
    Raises: CborError when the bytes are damaged.
    """
    if _accelerator is None:
        return decode_python(content)
    try:
        value, end = _accelerator.decode_dag_cbor(content, Cid, False)
    except (ValueError, TypeError, RecursionError) as error:
        raise CborError(f"not DAG-CBOR: {error}") from error
    if end != len(content):
        raise CborError("bytes after the end of the value")
    return value  # type: ignore[no-any-return]


def decode_json(content: bytes) -> Json:
    """Return the JSON form of a block of our own store: trusted bytes, not checked again.

    Raises: CborError when the bytes are damaged.
    """
    if _accelerator is None:
        return json_form(decode_python(content))
    try:
        value, _end = _accelerator.decode_dag_cbor(content, Cid, True)
    except (ValueError, TypeError, RecursionError):
        # Damaged, or it has keys such as "$link" of its own, which the accelerator refuses here.
        return json_form(decode_python(content))
    return value  # type: ignore[no-any-return]


def link_text(cid: Cid) -> str:
    """Return `str(cid)`, 15 times faster with the accelerator: pages of records are full of them.

    Only blessed CIDs, as our own records have, take the short way.
    """
    if _accelerator is None or len(cid) != BLESSED_CID_BYTES:
        return str(cid)
    value, _end = _accelerator.decode_dag_cbor(_LINK_HEAD + cid, Cid, True)
    return value["$link"]  # type: ignore[no-any-return]


def json_form(value: Any) -> Json:
    """Return `value` with links as `{"$link"}` and bytes as `{"$bytes"}` (DM-21: unpadded)."""
    kind = type(value)
    if kind is dict:
        return {key: json_form(item) for key, item in value.items()}
    if kind is list:
        return [json_form(item) for item in value]
    if kind is Cid:
        return {"$link": str(value)}
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).rstrip(b"=").decode()}
    return value  # type: ignore[no-any-return]


# --- The accelerator and its checks -----------------------------------------------------------


def _is_affordable(content: bytes) -> bool:
    """Whether the accelerator cannot be made to allocate much more than the limits allow."""
    size = len(content)
    if size * size <= _MAX_CLAIM_BYTES // 8:
        return True
    long_lists = len(content.translate(None, _NO_LONG_LIST_HEADS))
    if long_lists * size * 8 > _MAX_CLAIM_BYTES:
        return False
    if size <= MAX_CONTAINERS:
        return True
    return len(content.translate(None, _NO_CONTAINER_HEADS)) <= MAX_CONTAINERS


def _needs_no_check(content: bytes) -> bool:
    """Whether the bytes alone show that no limit or missing check can be violated.

    True for nearly every record: at most `MAX_DEPTH` bytes that could open a list or map, and none
    that could begin a float, a 64-bit integer or an empty key. False means "look at the value".
    """
    if len(content) > MAX_KEY_BYTES:
        return False
    heads = content.translate(None, _HARMLESS)
    return (
        len(heads) <= MAX_DEPTH
        and b"\x1b" not in heads
        and b"\x3b" not in heads
        and b"\x60" not in heads
        and b"\xfb" not in heads
    )


def _decode_accelerated(content: bytes) -> tuple[Data, int]:
    try:
        return _accelerator.decode_dag_cbor(content, _link, False)  # type: ignore[no-any-return]
    except InvalidCid as error:
        raise CborError(f"bad link: {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise CborError(f"not canonical DAG-CBOR: {error}") from error


_LINK_HEAD: Final = b"\xd8\x2a\x58\x25\x00"
"""Tag 42 and a byte string of a zero byte and a blessed CID."""
_BLESSED_PREFIXES: Final = (b"\x01\x71\x12\x20", b"\x01\x55\x12\x20")


def _link(content: bytes) -> Cid:
    if len(content) == BLESSED_CID_BYTES and content[:4] in _BLESSED_PREFIXES:
        return Cid(content)
    return decode_cid(content)


def _check_value(value: Any, depth: int, budget: list[int]) -> None:
    """Apply the checks that the accelerator lacks. `budget` counts lists and maps down."""
    kind = type(value)
    items: Any
    if kind is dict:
        for key in value:
            if not key or len(key) > MAX_KEY_BYTES // 4:
                _check_key(key)
        items = value.values()
    elif kind is list:
        items = value
    else:
        _check_scalar(value)
        return
    depth += 1
    budget[0] -= 1
    if depth > MAX_DEPTH or len(value) > MAX_CONTAINER_ITEMS or budget[0] < 0:
        _check_container(depth, len(value), budget)
    for item in items:
        kind = type(item)
        if kind is str or kind is Cid or kind is bytes or item is None:
            continue
        if kind is dict or kind is list:
            _check_value(item, depth, budget)
        elif kind is not int or not MIN_INT <= item <= MAX_INT:
            _check_scalar(item)


def _check_container(depth: int, size: int, budget: list[int]) -> None:
    if depth > MAX_DEPTH:
        raise CborError("nested too deeply")
    if size > MAX_CONTAINER_ITEMS:
        raise CborError("too many items in a list or map")
    if budget[0] < 0:
        raise CborError("too many lists and maps")


def _check_key(key: str) -> None:
    if not key:
        raise CborError("empty map key")
    if len(key.encode()) > MAX_KEY_BYTES:
        raise CborError("map key too long")


def _check_scalar(value: Any) -> None:
    kind = type(value)
    if kind is float:
        raise CborError("floats are not allowed")
    if kind is int and not MIN_INT <= value <= MAX_INT:
        raise CborError("integer does not fit in 64 bits")


# --- The definition in Python: encoding -------------------------------------------------------


def encode_python(value: Data) -> bytes:
    """Encode without the accelerator; see `encode`."""
    out = bytearray()
    _write(out, value, 0, [MAX_CONTAINERS])
    return bytes(out)


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes((major << 5 | number,))
    if number < 0x100:
        return bytes((major << 5 | 24, number))
    if number < 0x10000:
        return bytes((major << 5 | 25,)) + number.to_bytes(2, "big")
    if number < 0x100000000:
        return bytes((major << 5 | 26,)) + number.to_bytes(4, "big")
    return bytes((major << 5 | 27,)) + number.to_bytes(8, "big")


def _write(out: bytearray, value: Any, depth: int, budget: list[int]) -> None:
    kind = type(value)
    if kind is str:
        _write_string(out, value)
    elif kind is dict:
        _write_map(out, value, depth + 1, budget)
    elif kind is list:
        budget[0] -= 1
        _check_container(depth + 1, len(value), budget)
        out += _head(4, len(value))
        for item in value:
            _write(out, item, depth + 1, budget)
    elif kind is Cid:
        content = b"\x00" + value
        out += b"\xd8\x2a" + _head(2, len(content)) + content
    elif kind is bytes:
        out += _head(2, len(value))
        out += value
    elif kind is int:
        _check_scalar(value)
        out += _head(0, value) if value >= 0 else _head(1, ~value)
    elif value is None:
        out.append(0xF6)
    elif kind is bool:
        out.append(0xF5 if value else 0xF4)
    else:
        raise CborError(f"cannot be encoded: type {kind.__name__}")


def _write_string(out: bytearray, text: str) -> None:
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise CborError("text with a lone surrogate") from error
    out += _head(3, len(content))
    out += content


def _write_map(out: bytearray, value: dict[str, object], depth: int, budget: list[int]) -> None:
    budget[0] -= 1
    _check_container(depth, len(value), budget)
    pairs: list[tuple[bytes, object]] = []
    for key, item in value.items():
        if type(key) is not str:
            raise CborError("map keys must be strings")
        encoded_key = bytearray()
        _write_string(encoded_key, key)
        _check_key(key)
        pairs.append((bytes(encoded_key), item))
    # The head holds the length, so the order of the encoded keys is length first, then bytes.
    pairs.sort(key=_first)
    out += _head(5, len(pairs))
    for encoded, item in pairs:
        out += encoded
        _write(out, item, depth, budget)


def _first(pair: tuple[bytes, object]) -> bytes:
    return pair[0]


# --- The definition in Python: decoding -------------------------------------------------------


def decode_python(content: bytes) -> Data:
    """Decode without the accelerator; see `decode`."""
    value, end = _decode_item_python(content)
    if end != len(content):
        raise CborError("bytes after the end of the value")
    return value


def _decode_item_python(content: bytes) -> tuple[Data, int]:
    return _read(content, 0, 0, [MAX_CONTAINERS])


def _read(content: bytes, at: int, depth: int, budget: list[int]) -> tuple[Data, int]:
    if at >= len(content):
        raise CborError("the input ends inside a value")
    initial = content[at]
    if initial >= 0xE0:
        return _read_simple(initial), at + 1
    if initial >= 0xC0 and initial != 0xD8:
        raise CborError("only tag 42 is allowed")
    number, at = _read_number(content, at, initial & 31)
    match initial >> 5:
        case 0 | 1 as major:
            if number > MAX_INT:
                raise CborError("integer does not fit in 64 bits")
            return (~number if major else number), at
        case 2:
            return _read_bytes(content, at, number)
        case 3:
            return _read_text(content, at, number)
        case 4:
            return _read_list(content, at, number, depth + 1, budget)
        case 5:
            return _read_map(content, at, number, depth + 1, budget)
        case _:
            return _read_link(content, at, number)


def _read_simple(initial: int) -> bool | None:
    if initial == 0xF6:
        return None
    if initial in {0xF4, 0xF5}:
        return initial == 0xF5
    raise CborError("floats, undefined and other simple values are not allowed")


def _read_number(content: bytes, at: int, info: int) -> tuple[int, int]:
    """Read the number that follows an initial byte, in its shortest form only."""
    if info < 24:
        return info, at + 1
    if info > 27:
        raise CborError("indefinite lengths and reserved values are not allowed")
    width = 1 << (info - 24)
    end = at + 1 + width
    if end > len(content):
        raise CborError("the input ends inside a number")
    number = int.from_bytes(content[at + 1 : end], "big")
    if number < (24 if width == 1 else 1 << (4 * width)):
        raise CborError("number is not in its shortest form")
    return number, end


def _read_bytes(content: bytes, at: int, number: int) -> tuple[bytes, int]:
    end = at + number
    if end > len(content):
        raise CborError("the input ends inside a string")
    return content[at:end], end


def _read_text(content: bytes, at: int, number: int) -> tuple[str, int]:
    end = at + number
    if end > len(content):
        raise CborError("the input ends inside a string")
    try:
        return content[at:end].decode(), end
    except UnicodeDecodeError as error:
        raise CborError("text is not UTF-8") from error


def _read_list(
    content: bytes, at: int, number: int, depth: int, budget: list[int]
) -> tuple[Data, int]:
    budget[0] -= 1
    _check_container(depth, number, budget)
    if number > len(content) - at:
        raise CborError("the input ends inside a list")
    items: list[Data] = []
    for _ in range(number):
        item, at = _read(content, at, depth, budget)
        items.append(item)
    return items, at


def _read_map(
    content: bytes, at: int, number: int, depth: int, budget: list[int]
) -> tuple[Data, int]:
    budget[0] -= 1
    _check_container(depth, number, budget)
    if 2 * number > len(content) - at:
        raise CborError("the input ends inside a map")
    value: dict[str, Data] = {}
    previous = b""
    for _ in range(number):
        start = at
        if at >= len(content) or content[at] >> 5 != 3:
            raise CborError("map keys must be strings")
        length, at = _read_number(content, at, content[at] & 31)
        key, at = _read_text(content, at, length)
        _check_key(key)
        encoded = content[start:at]
        if encoded <= previous:
            raise CborError("map keys are out of order or repeated")
        previous = encoded
        value[key], at = _read(content, at, depth, budget)
    return value, at


def _read_link(content: bytes, at: int, number: int) -> tuple[Cid, int]:
    if number != 42:
        raise CborError("only tag 42 is allowed")
    if at >= len(content) or content[at] >> 5 != 2:
        raise CborError("a link holds a byte string")
    length, at = _read_number(content, at, content[at] & 31)
    value, end = _read_bytes(content, at, length)
    if value[:1] != b"\x00" or len(value) > MAX_CID_BYTES + 1:
        raise CborError("a link holds a zero byte and a CID")
    try:
        return decode_cid(value[1:]), end
    except InvalidCid as error:
        raise CborError(f"bad link: {error}") from error
