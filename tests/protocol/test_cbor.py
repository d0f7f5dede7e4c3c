"""DAG-CBOR: one form for each value, the same verdict from both codecs.

Spec: DM-1, DM-2, DM-4, DM-5, DM-10, DM-11, DM-12, DM-13, DM-14.
"""

import base64
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pds.protocol import cbor
from pds.protocol.cbor import (
    MAX_CONTAINER_ITEMS,
    MAX_CONTAINERS,
    MAX_DEPTH,
    MAX_INT,
    MAX_KEY_BYTES,
    MIN_INT,
    CborError,
    Data,
)
from pds.protocol.cid import Cid, decode_cid
from tests.support import load_vectors

VECTORS = load_vectors("cbor.json")
DECODERS: list[Callable[[bytes], Data]] = [cbor.decode, cbor.decode_python]
ENCODERS: list[Callable[[Data], bytes]] = [cbor.encode, cbor.encode_python]
LINK = Cid.of_data(b"\xa0")

both_decoders = pytest.mark.parametrize("decode", DECODERS)
both_encoders = pytest.mark.parametrize("encode", ENCODERS)

cids = st.one_of(
    st.binary(max_size=4).map(Cid.of_data),
    st.binary(max_size=4).map(Cid.of_raw),
    st.binary(min_size=1, max_size=8).map(lambda d: decode_cid(bytes([1, 0x71, 0, len(d)]) + d)),
)
keys = st.one_of(st.sampled_from(["a", "bb", "aaa", "$type", "text"]), st.text(min_size=1))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(MIN_INT, MAX_INT),
    st.integers(-300, 300),
    st.text(),
    st.binary(max_size=40),
    cids,
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(keys, inner, max_size=5)),
    max_leaves=20,
)


def verdict(decode: Callable[[bytes], Data], content: bytes) -> Any:
    """What a decoder says: the value with its types, or that it refuses."""
    try:
        value = decode(content)
    except CborError:
        return "refused"
    return tagged(value)


def tagged(value: Any) -> Any:
    """Make 1, True and 1.0, or Cid and bytes, compare as different."""
    if type(value) is list:
        return [tagged(item) for item in value]
    if type(value) is dict:
        return {key: tagged(item) for key, item in value.items()}
    return (type(value).__name__, value)


def nested(depth: int) -> Data:
    value: Data = []
    for _ in range(depth - 1):
        value = [value]
    return value


# --- Vectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda v: v["what"])
def test_valid_vectors_decode_and_encode_to_the_same_bytes(vector: dict[str, Any]) -> None:
    content = bytes.fromhex(vector["hex"])
    for decode in DECODERS:
        value = decode(content)
        assert cbor.json_form(value) == vector["json"]
        for encode in ENCODERS:
            assert encode(value) == content
    assert cbor.decode_json(content) == vector["json"]
    assert cbor.decode_trusted(content) == cbor.decode(content)
    assert cbor.decode_prefix(content + b"\xff") == (cbor.decode(content), len(content))


@both_decoders
@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=lambda v: v["why"])
def test_every_other_form_is_refused(
    vector: dict[str, str], decode: Callable[[bytes], Data]
) -> None:
    with pytest.raises(CborError):
        decode(bytes.fromhex(vector["hex"]))


# --- Limits (DM-13) ---------------------------------------------------------------------------


@both_encoders
@both_decoders
def test_nesting_of_32_is_allowed_and_33_is_not(
    encode: Callable[[Data], bytes], decode: Callable[[bytes], Data]
) -> None:
    content = encode(nested(MAX_DEPTH))
    assert decode(content) == nested(MAX_DEPTH)
    with pytest.raises(CborError):
        encode(nested(MAX_DEPTH + 1))
    with pytest.raises(CborError):
        decode(b"\x81" + content)
    with pytest.raises(CborError):
        decode(b"\xa1\x61a" + content)


@both_encoders
@both_decoders
def test_a_list_of_131072_items_is_allowed_and_one_more_is_not(
    encode: Callable[[Data], bytes], decode: Callable[[bytes], Data]
) -> None:
    items: list[Data] = [0] * MAX_CONTAINER_ITEMS
    assert decode(encode(items)) == items
    with pytest.raises(CborError):
        encode([*items, 0])
    with pytest.raises(CborError):
        decode(b"\x9a\x00\x02\x00\x01" + bytes(MAX_CONTAINER_ITEMS + 1))


@both_encoders
@both_decoders
def test_the_number_of_lists_and_maps_in_one_value_is_bounded(
    encode: Callable[[Data], bytes], decode: Callable[[bytes], Data]
) -> None:
    half = MAX_CONTAINERS // 2
    value: Data = [[[] for _ in range(half)], [[] for _ in range(half - 3)]]
    content = encode(value)
    assert decode(content) == value
    with pytest.raises(CborError):
        encode([value, []])
    with pytest.raises(CborError):
        decode(b"\x82" + content + b"\x80")


@both_encoders
@both_decoders
def test_a_key_of_8192_bytes_is_allowed_and_one_more_is_not(
    encode: Callable[[Data], bytes], decode: Callable[[bytes], Data]
) -> None:
    value: Data = {"é" * (MAX_KEY_BYTES // 2): 1}
    assert decode(encode(value)) == value
    with pytest.raises(CborError):
        encode({"a" + "é" * (MAX_KEY_BYTES // 2): 1})
    with pytest.raises(CborError):
        decode(b"\xa1\x79\x20\x01" + b"a" * (MAX_KEY_BYTES + 1) + b"\x00")


@both_decoders
def test_a_link_of_100_bytes_is_allowed_and_one_more_is_not(
    decode: Callable[[bytes], Data],
) -> None:
    cid = bytes([1, 0x71, 0x12, 96]) + bytes(96)
    assert decode(b"\xd8\x2a\x58\x65\x00" + cid) == cid
    with pytest.raises(CborError):
        decode(b"\xd8\x2a\x58\x66\x00" + bytes([1, 0x71, 0x12, 97]) + bytes(97))


# --- Encoding ---------------------------------------------------------------------------------


class Text(str):
    __slots__ = ()


@both_encoders
@pytest.mark.parametrize(
    "value",
    [
        1.5,
        1.0,
        float("nan"),
        2**63,
        -(2**63) - 1,
        2**70,
        (1, 2),
        {1, 2},
        bytearray(b"x"),
        object(),
        Text("x"),
        {1: 2},
        {Text("a"): 1},
        {"": 1},
        {"a": 1.0},
        [[2**63]],
        "\ud800",
        {"\udfff": 1},
        b"x".hex,
    ],
    ids=lambda value: repr(value).split(" at 0x")[0],
)
def test_what_is_not_in_the_data_model_is_not_encoded(
    value: Any, encode: Callable[[Data], bytes]
) -> None:
    with pytest.raises(CborError):
        encode(value)
    with pytest.raises(CborError):
        encode({"deep": [value]})


def test_a_link_and_bytes_of_the_same_content_encode_differently() -> None:
    for encode in ENCODERS:
        assert encode(LINK) == b"\xd8\x2a\x58\x25\x00" + LINK
        assert encode(bytes(LINK)) == b"\x58\x24" + LINK


# --- Properties -------------------------------------------------------------------------------


@given(values)
def test_every_value_survives_both_codecs(value: Any) -> None:
    content = cbor.encode_python(value)
    assert cbor.encode(value) == content
    for decode in DECODERS:
        assert tagged(decode(content)) == tagged(value)
    assert cbor.decode_json(content) == cbor.json_form(value)
    assert tagged(cbor.decode_trusted(content)) == tagged(value)


@given(values)
def test_cbor2_writes_the_same_bytes_and_reads_them(value: Any) -> None:
    def foreign(item: Any) -> Any:
        if type(item) is Cid:
            return cbor2.CBORTag(42, b"\x00" + item)
        if type(item) is list:
            return [foreign(inner) for inner in item]
        if type(item) is dict:
            return {key: foreign(inner) for key, inner in item.items()}
        return item

    content = cbor.encode(value)
    assert cbor2.dumps(foreign(value), canonical=True) == content
    assert cbor2.loads(content) == foreign(value)


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_both_decoders_agree_on_any_bytes(content: bytes) -> None:
    assert verdict(cbor.decode, content) == verdict(cbor.decode_python, content)


@settings(max_examples=300)
@given(values, st.data())
def test_both_decoders_agree_on_damaged_values(value: Any, data: st.DataObject) -> None:
    content = bytearray(cbor.encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        kind = data.draw(st.sampled_from(["flip", "insert", "cut"]))
        if kind == "flip" and at < len(content):
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            del content[at : at + data.draw(st.integers(1, 4))]
    damaged = bytes(content)
    found = verdict(cbor.decode_python, damaged)
    assert verdict(cbor.decode, damaged) == found
    if found != "refused":
        decoded = cbor.decode(damaged)
        assert cbor.encode(decoded) == cbor.encode_python(decoded) == damaged


@given(values)
def test_a_value_followed_by_anything_is_not_one_value(value: Any) -> None:
    content = cbor.encode(value)
    for decode in DECODERS:
        with pytest.raises(CborError):
            decode(content + b"\x00")
        with pytest.raises(CborError):
            decode(content[:-1])
    assert cbor.decode_prefix(b"\xf6" + content + b"\xf6", 1) == (value, 1 + len(content))


def stretched(head: int, number: int, width: int) -> bytes:
    """A head with its number in `width` bytes, longer than needed."""
    return bytes([head << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[width]]) + number.to_bytes(width, "big")


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 4, 8]), st.sampled_from([0, 1]))
@example(23, 1, 0)
@example(65535, 4, 1)
def test_a_number_in_more_bytes_than_needed_is_refused(n: int, width: int, major: int) -> None:
    if n >= 1 << (8 * width):
        return
    content = stretched(major, n, width)
    shortest = cbor.encode(n if major == 0 else ~n)
    for decode in DECODERS:
        if content == shortest:
            decode(content)
        else:
            with pytest.raises(CborError):
                decode(content)


@given(st.dictionaries(keys, st.integers(0, 9), min_size=2, max_size=6), st.randoms())
def test_map_keys_in_any_other_order_are_refused(value: dict[str, int], random: Any) -> None:
    pairs = [(cbor.encode(key), cbor.encode(item)) for key, item in value.items()]
    random.shuffle(pairs)
    content = bytes([0xA0 | len(pairs)]) + b"".join(key + item for key, item in pairs)
    right = sorted(pairs) == pairs
    for decode in DECODERS:
        assert (verdict(decode, content) != "refused") is right


@given(st.dictionaries(keys, st.integers(0, 9), min_size=1, max_size=4), st.data())
def test_a_repeated_key_is_refused_wherever_it_stands(
    value: dict[str, int], data: st.DataObject
) -> None:
    pairs = sorted((cbor.encode(key), cbor.encode(item)) for key, item in value.items())
    again = data.draw(st.sampled_from(pairs))
    pairs = sorted([*pairs, (again[0], b"\x09")])
    content = bytes([0xA0 | len(pairs)]) + b"".join(key + item for key, item in pairs)
    for decode in DECODERS:
        assert verdict(decode, content) == "refused"


def test_trusted_and_json_decoding_still_notice_damage() -> None:
    content = cbor.encode({"a": [1, "text", LINK]})
    for decode in (cbor.decode_trusted, cbor.decode_json):
        for bad in (content[:-1], b"", b"\xff" + content):
            with pytest.raises(CborError):
                decode(bad)
    with pytest.raises(CborError):
        cbor.decode_trusted(content + b"\x00")


@given(st.binary(min_size=32, max_size=32), st.sampled_from([Cid.of_data, Cid.of_raw]))
def test_the_short_way_writes_the_text_of_a_cid(
    content: bytes, make: Callable[[bytes], Cid]
) -> None:
    cid = make(content)
    expected = "b" + base64.b32encode(cid).decode().lower().rstrip("=")
    assert cbor.link_text(cid) == str(cid) == expected


def test_a_cid_of_another_hash_has_its_text_too() -> None:
    cid = decode_cid(bytes([1, 0x55, 0x00, 2, 7, 8]))
    assert cbor.link_text(cid) == str(cid)


@given(st.binary(max_size=3_000))
def test_trusted_content_is_encoded_to_the_same_bytes(content: bytes) -> None:
    value: Data = {"blocks": content, "commit": Cid.of_data(content), "ops": [{"path": "a/b"}]}
    assert cbor.encode_trusted(value) == cbor.encode_python(value)
    with pytest.raises(CborError):
        cbor.encode_trusted({"half": "\ud800"})


def test_keys_that_json_reserves_are_shown_as_they_are() -> None:
    values: list[Data] = [{"$link": None}, {"a": {"$bytes": 5}}]
    for value in values:
        assert cbor.decode_json(cbor.encode(value)) == value


def test_without_the_accelerator_everything_works_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    value: Data = {"a": [1, "text", LINK, b"bytes", None, True], "bb": {"c": -5}}
    content = cbor.encode(value)
    monkeypatch.setattr(cbor, "_accelerator", None)
    assert cbor.encode(value) == content
    assert cbor.encode_trusted(value) == content
    assert cbor.link_text(LINK) == str(LINK)
    assert cbor.decode(content) == value
    assert cbor.decode_trusted(content) == value
    assert cbor.decode_prefix(content + b"x") == (value, len(content))
    assert cbor.decode_json(content) == cbor.json_form(value)


def test_a_missing_accelerator_is_noticed_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cbrrr", None)
    assert cbor._load_accelerator() is None
