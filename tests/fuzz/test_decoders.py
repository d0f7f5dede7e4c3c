"""Every decoder of bytes against nasty input: only ProtocolError, bounded time and memory.

A megabyte may cost at most 64 MB more and one second (promise C1). Time is the process's own CPU
time, so that a busy machine does not fail the test.
"""

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.errors import ProtocolError
from pds.protocol import cbor, data
from pds.protocol.car import CarReader, encode_car_block, encode_car_header, read_car
from pds.protocol.cid import Cid, decode_cid, parse_cid
from pds.protocol.frames import decode_frame
from pds.protocol.syntax import parse_at_uri, parse_datetime, parse_language
from tests.support_pace import within

MEGABYTE = 1_000_000
MEMORY_LIMIT_BYTES = 64 * 1024 * 1024
TIME_LIMIT_S = 1.0


def json_to_data(content: bytes) -> None:
    data.from_json(data.parse_json(content))


def feed_bytes(content: bytes) -> None:
    reader = CarReader()
    for at in range(0, len(content), 4096):
        reader.feed(content[at : at + 4096])
    reader.finish()


BYTE_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "cbor": cbor.decode,
    "cbor in Python": cbor.decode_python,
    "cbor prefix": cbor.decode_prefix,
    "json": json_to_data,
    "car": read_car,
    "car in chunks": feed_bytes,
    "frame": decode_frame,
    "cid": decode_cid,
}


def mega(pattern: bytes) -> bytes:
    return (pattern * (MEGABYTE // len(pattern) + 1))[:MEGABYTE]


def sized(major: int, pattern: bytes, count: int) -> bytes:
    """A list (4) or map (5) of `count` items, each `pattern`."""
    return cbor._head(major, count) + pattern * count


def two_levels(pattern: bytes, per_list: int, lists: int) -> bytes:
    return sized(4, sized(4, pattern, per_list), lists)


CAR_HEADER = encode_car_header([])
NASTY: dict[str, bytes] = {
    "zeros": bytes(MEGABYTE),
    "deep lists": mega(b"\x81"),
    "deep lists of two": mega(b"\x82\x80"),
    "deep maps": mega(b"\xa1\x61\x61"),
    "deep links": mega(b"\xd8\x2a"),
    "nested huge lists": mega(b"\x9a\x00\x01\xff\xff"),
    "nested lists of 8000": mega(b"\x99\x1f\x40"),
    "nested lists of 255": mega(b"\x98\xff"),
    "nested lists claiming all": mega(b"\x9a\x00\x0e\x00\x00"),
    "nested huge maps": mega(b"\xba\x00\x01\xff\xff\x61\x61"),
    "empty lists": two_levels(b"\x80", 100_000, 9),
    "small maps": two_levels(b"\xa1\x61\x61\x80", 60_000, 4),
    "most maps of two": two_levels(b"\xa2\x61\x61\x19\x01\x01\x61\x62\x62\x78\x78", 60_000, 2),
    "small integers": two_levels(b"\x19\x01\x01", 100_000, 1),
    "short texts": two_levels(b"\x62\x61\x62", 100_000, 1),
    "short bytes": two_levels(b"\x42\x61\x62", 100_000, 1),
    "short links": two_levels(b"\xd8\x2a\x46\x00\x01\x71\x00\x01\x00", 20_000, 1),
    "one text of list heads": b"\x7a" + (990_000).to_bytes(4, "big") + b"\xe9\x9a\x9a" * 330_000,
    "one bytes of list heads": b"\x5a" + (990_000).to_bytes(4, "big") + b"\x9a" * 990_000,
    "many map keys": b"\xba"
    + (131_072).to_bytes(4, "big")
    + b"".join(
        b"\x63" + n.to_bytes(3, "big") + b"\x00" for n in range(131_072) if n & 0x808080 == 0
    ),
    "text that claims too much": b"\x7b\x00\x00\x00\x7f\xff\xff\xff\xff" + mega(b"a"),
    "bad UTF-8": b"\x7a" + MEGABYTE.to_bytes(4, "big") + mega(b"\xff"),
    "json deep lists": mega(b"["),
    "json deep maps": mega(b'{"a":'),
    "json empty lists": b"[" + b"[]," * 333_000 + b"[]]",
    "json empty maps": b"[" + b"{}," * 333_000 + b"{}]",
    "json small maps": b"[" + b'{"a":0},' * 120_000 + b"{}]",
    "json duplicate keys": b"{" + b'"a":0,' * 160_000 + b'"b":0}',
    "json spaced keys": b"[" + b'{"a" :[]},' * 90_000 + b"{}]",
    "json long number": mega(b"9"),
    "json long fraction": b"0." + mega(b"0"),
    "json long exponent": b"1e" + mega(b"9"),
    "json many floats": b"[" + b"1.0," * 60_000 + b"1.0]",
    "json many bad links": b"[" + b'{"$link":"b"},' * 70_000 + b"0]",
    "json backslashes": b'"' + mega(b"\\"),
    "json escapes": b'"' + b"\\u0041" * 160_000 + b'"',
    "json bytes": b'{"$bytes":"' + mega(b"=") + b'"}',
    "json link": b'{"$link":"b' + mega(b"a") + b'"}',
    "car of nothing": CAR_HEADER + bytes(MEGABYTE),
    "car of tiny blocks": CAR_HEADER + encode_car_block(Cid.of_data(b"\xa0"), b"\xa0") * 26_000,
    "car of unknown hashes": CAR_HEADER + b"\x05\x01\x71\x00\x01a" * 50_000,
    "car of varints": mega(b"\x80"),
    "car with a huge block": CAR_HEADER + b"\xff\xff\xff\xff\xff\xff\xff\x7f" + mega(b"x"),
    "frame with a deep payload": cbor.encode({"op": 1, "t": "#x"}) + mega(b"\x81"),
    "high bytes": mega(b"\xff"),
}


def decoders_for(what: str) -> list[str]:
    """The decoders that get further than the first byte of a nasty input."""
    kind = what.split()[0]
    return {"json": ["json"], "car": ["car", "car in chunks"], "frame": ["frame"]}.get(
        kind, ["cbor", "cbor in Python"]
    )


@pytest.mark.parametrize("what", NASTY)
def test_a_megabyte_of_anything_costs_bounded_time_and_memory(what: str) -> None:
    for name in decoders_for(what):
        started = time.thread_time()
        run(BYTE_DECODERS[name], NASTY[what])
        assert within(TIME_LIMIT_S, started), name
    tracemalloc.start()
    try:
        run(BYTE_DECODERS[decoders_for(what)[0]], NASTY[what])
        assert tracemalloc.get_traced_memory()[1] <= MEMORY_LIMIT_BYTES
    finally:
        tracemalloc.stop()


def run(decode: Callable[[bytes], Any], content: bytes) -> None:
    try:
        decode(content)
    except ProtocolError:
        return


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_protocol_errors_only(content: bytes) -> None:
    for decode in BYTE_DECODERS.values():
        run(decode, content)


PIECES = [
    *(bytes([head]) for head in (0x00, 0x18, 0x3B, 0x61, 0x7A, 0x81, 0x9A, 0xA1, 0xBA, 0xF6, 0xFF)),
    *(b"\xd8\x2a", b"a", CAR_HEADER, b'"a":', b"{", b"[", b"]", b"1.0", b'"$link"', b'"$bytes":'),
]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_bytes_made_of_meaningful_pieces_raise_protocol_errors_only(pieces: list[bytes]) -> None:
    for decode in BYTE_DECODERS.values():
        run(decode, b"".join(pieces))


@given(st.text(max_size=100))
def test_arbitrary_text_raises_protocol_errors_only(text: str) -> None:
    for parse in (parse_cid, parse_at_uri, parse_datetime, parse_language):
        try:
            parse("b" + text)
            parse(text)
        except ProtocolError:
            continue


@pytest.mark.parametrize("decode", [cbor.decode, cbor.decode_python])
def test_the_largest_honest_record_is_still_accepted(decode: Callable[[bytes], Any]) -> None:
    record: cbor.Data = {
        "$type": "com.example.record",
        "text": "漢字" * 100_000,
        "items": [{"n": n, "link": Cid.of_raw(b"x")} for n in range(5_000)],
    }
    content = cbor.encode(record)
    assert 800_000 < len(content) < MEGABYTE
    assert decode(content) == record
