"""JSON to data and back: strict whatever the schema says.

Spec: DM-1, DM-2, DM-3, DM-4, DM-5, DM-6, DM-7, DM-20, DM-21, DM-22, DM-23, DM-24, DM-25, DM-40,
DM-41, DM-42.
"""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pds.protocol import cbor
from pds.protocol.cid import Cid
from pds.protocol.data import (
    MAX_JSON_CONTAINERS,
    MAX_JSON_DEPTH,
    MAX_SAFE_INT,
    BlobRef,
    InvalidData,
    dump_json,
    find_blob_refs,
    find_legacy_blobs,
    from_json,
    parse_json,
    record_from_json,
    to_json,
)
from tests.protocol.test_cbor import values
from tests.support import interop_dir, load_vectors

VECTORS = load_vectors("data_model.json")
RAW = Cid.of_raw(b"abc")


def blob_json(cid: Cid = RAW, size: int = 3) -> dict[str, Any]:
    return BlobRef(cid, "image/png", size).to_json()


# --- JSON text --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("123.0", 123),
        ("[1e2, 1.5e1, -0.0, 0.0, 0e99, 0.0e-400]", [100, 15, 0, 0, 0, 0]),
        ("9007199254740993.0", 9007199254740993),
        ("-9223372036854775808", -(2**63)),
        ('"\\ud83d\\ude00"', "😀"),
        (' {"a" : "b:c", "c" :"\\":"} ', {"a": "b:c", "c": '":'}),
        ('{"a\\u0022:": 1, "b": "\\u0022:"}', {'a":': 1, "b": '":'}),
        ("null", None),
    ],
)
def test_json_is_read_exactly(body: str, value: Any) -> None:
    found = parse_json(body.encode())
    assert found == value
    assert json.dumps(found) == json.dumps(value)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[1,]",
        "{} {}",
        "NaN",
        "Infinity",
        "-Infinity",
        "1.5",
        "1e400",
        "1e-400",
        "1e999999999999999999",
        "1" * 5000 + ".5",
        "18446744073709551616",
        "-9223372036854775809",
        "1e30",
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '"\\x"',
        "'a'",
        "\ufeff{}",
        "[1] // no",
        "nul",
        "\u0000",
    ],
)
def test_what_is_not_json_of_the_data_model_is_refused(body: str) -> None:
    with pytest.raises(InvalidData):
        from_json(parse_json(body.encode("utf-8")))


@pytest.mark.parametrize(
    "body", [b'"\xff"', b'"\xed\xa0\x80"', b"\xff\xfe{\x00}\x00", b'"\xc0\x80"']
)
def test_json_that_is_not_utf_8_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidData):
        parse_json(body)


@pytest.mark.parametrize(
    "body",
    [
        '{"a":1,"a":1}',
        '{"a":1,"a" :2}',
        '{"a":1,"a"\n:2}',
        '{"a":1,"a"\t:2}',
        '{"a":1,"a"\r:2}',
        '{"a":1,"\\u0061":2}',
        '{"x":{"b":{},"b":[]}}',
        '[{"a":1},{"a":1,"b":2,"a":3}]',
        '{"s":"\\u0022:","a":1,"a":2}',
        '{"s":"\\"\\u003a","a":1,"a":2}',
        '{"s":"\\"\\u003A","a":1,"a":2}',
        '{"a":100000,"a":1e5}',
        '{"":1,"":2}',
    ],
)
def test_a_duplicate_key_is_refused_however_it_is_written(body: str) -> None:
    with pytest.raises(InvalidData, match="duplicate"):
        parse_json(body.encode())


plain_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(st.characters())),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=10,
).filter(lambda value: True)


@given(plain_json, st.sampled_from([None, 1]), st.booleans())
def test_any_way_to_write_json_reads_the_same(value: Any, indent: int | None, ascii_: bool) -> None:
    try:
        body = json.dumps(value, indent=indent, ensure_ascii=ascii_).encode()
    except UnicodeEncodeError:
        return
    try:
        found = parse_json(body)
    except InvalidData:
        assert any(0xD800 <= ord(c) < 0xE000 for c in json.dumps(value, ensure_ascii=False))
        return
    assert found == value
    assert json.loads(dump_json(found)) == value


@given(plain_json, plain_json, st.text(), st.sampled_from([":", " :", ": ", " : "]))
def test_a_duplicate_key_never_slips_through(one: Any, two: Any, key: str, colon: str) -> None:
    name = json.dumps(key)
    pairs = [f"{name}{colon}{json.dumps(item)}" for item in (one, two)]
    with pytest.raises(InvalidData):
        parse_json(("[{" + ",".join(pairs) + "}]").encode())


def test_json_nesting_is_bounded() -> None:
    deepest = b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH
    parse_json(deepest)
    for body in (b"[" + deepest + b"]", b'{"a":' + deepest + b"}", b"[" * 100_000):
        with pytest.raises(InvalidData):
            parse_json(body)
    wide = json.dumps([{"a": 1}] * 100).encode()
    assert len(parse_json(wide)) == 100  # type: ignore[arg-type]


def test_the_number_of_lists_and_objects_is_bounded_and_text_does_not_count() -> None:
    most = [[]] * (MAX_JSON_CONTAINERS - 1)
    assert parse_json(dump_json(most)) == most
    with pytest.raises(InvalidData):
        parse_json(dump_json([*most, {}]))
    text = '[{"\\' * MAX_JSON_CONTAINERS
    assert parse_json(dump_json([text, {"a": text}])) == [text, {"a": text}]


# --- JSON form to data ------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "value"), VECTORS["valid"])
def test_valid_data_goes_to_cbor_and_back(what: str, value: Any) -> None:
    data = from_json(parse_json(dump_json(value)))
    content = cbor.encode(data)
    assert cbor.decode(content) == data
    again = to_json(data)
    assert again == cbor.decode_json(content)
    assert from_json(again) == data


@pytest.mark.parametrize(("what", "value"), VECTORS["invalid"])
def test_invalid_data_is_refused_at_any_depth(what: str, value: Any) -> None:
    for wrapped in (value, [value], {"a": value}, {"a": [[{"b": value}]]}):
        with pytest.raises(InvalidData):
            from_json(wrapped)


def test_a_record_is_a_map() -> None:
    assert record_from_json({"a": 1}) == {"a": 1}
    for value in ("text", 1, None, [], {"$link": str(RAW)}, {"$bytes": "AQ"}):
        with pytest.raises(InvalidData):
            record_from_json(value)


def test_strings_are_kept_as_received() -> None:
    record = {"createdAt": "2024-01-01T00:00:00.000000+00:00", "e": "e\u0301"}
    assert from_json(record) == record


def test_integers_are_limited_to_53_bits_unless_asked() -> None:
    assert from_json(MAX_SAFE_INT) == MAX_SAFE_INT
    for number in (MAX_SAFE_INT + 1, -MAX_SAFE_INT - 1):
        with pytest.raises(InvalidData):
            from_json(number)
        assert from_json(number, max_int=2**63 - 1) == number
    assert from_json(-(2**63), max_int=2**63 - 1) == -(2**63)
    with pytest.raises(InvalidData):
        from_json(2**63, max_int=2**63 - 1)


@pytest.mark.parametrize("value", [1.5, 1.0, b"x", (1,), {"a": 1.0}, [b"x"], object()])
def test_python_values_that_json_does_not_have_are_refused(value: Any) -> None:
    with pytest.raises(InvalidData):
        from_json(value)


def nested(kind: str, depth: int, core: Any) -> Any:
    for _ in range(depth):
        core = [core] if kind == "list" else {"a": core}
    return core


@pytest.mark.parametrize("kind", ["list", "map"])
def test_nesting_of_32_is_allowed_and_33_is_not(kind: str) -> None:
    for core in (1, {"$link": str(RAW)}):
        deepest = nested(kind, 32, core)
        assert to_json(cbor.decode(cbor.encode(from_json(deepest)))) == deepest
        with pytest.raises(InvalidData):
            from_json([deepest])


def test_sizes_of_lists_maps_and_keys_are_bounded() -> None:
    many = 131_072
    assert len(from_json([0] * many)) == many  # type: ignore[arg-type]
    assert from_json({"é" * 4096: 1})
    for value in ([0] * (many + 1), {str(i): 0 for i in range(many + 1)}, {"a" + "é" * 4096: 1}):
        with pytest.raises(InvalidData):
            from_json(value)


@given(values)
def test_json_form_and_data_are_inverse(value: Any) -> None:
    try:
        found = from_json(to_json(value), max_int=2**63 - 1)
    except InvalidData:
        assert has_reserved_meaning(value)
        return
    assert found == value or has_reserved_meaning(value)
    assert cbor.encode(found) == cbor.encode(value) or has_reserved_meaning(value)


def has_reserved_meaning(value: Any) -> bool:
    """Whether a value holds a `$type`, which generated data may fill with anything."""
    if type(value) is dict:
        return any(key.startswith("$") for key in value) or any(
            has_reserved_meaning(item) for item in value.values()
        )
    return type(value) is list and any(has_reserved_meaning(item) for item in value)


# --- Blobs ------------------------------------------------------------------------------------


def test_blob_refs_are_found_at_any_depth_in_order() -> None:
    second = Cid.of_raw(b"abcd")
    record = from_json(
        {
            "a": [{"b": blob_json()}, [blob_json(second, 4)]],
            "c": {"$type": "x.y.z", "blob": blob_json()},
            "d": {"$type": "other", "ref": {"$link": str(RAW)}},
        }
    )
    one, two = BlobRef(RAW, "image/png", 3), BlobRef(second, "image/png", 4)
    assert find_blob_refs(record) == [one, two, one]
    assert find_blob_refs(from_json(blob_json())) == [one]
    assert find_blob_refs("text") == []


def test_broken_blobs_of_foreign_records_are_passed_over() -> None:
    for broken in (
        {"$type": "blob"},
        {"$type": "blob", "ref": "x", "mimeType": "a/b", "size": 1},
        {"$type": "blob", "ref": Cid.of_data(b""), "mimeType": "a/b", "size": 1},
    ):
        assert find_blob_refs({"a": [broken]}) == []


def test_legacy_blobs_are_found_and_ordinary_objects_are_not() -> None:
    old = {"cid": str(RAW), "mimeType": "image/png"}
    assert find_legacy_blobs({"x": [old]}) == [BlobRef(RAW, "image/png", -1)]
    for other in (
        {**old, "more": 1},
        {"cid": str(RAW)},
        {"cid": "no cid", "mimeType": "image/png"},
        {"cid": 1, "mimeType": "image/png"},
        {"cid": str(RAW), "mimeType": None},
        blob_json(),
    ):
        assert find_legacy_blobs({"x": [other]}) == []


# --- Published fixtures -----------------------------------------------------------------------


def test_published_fixtures_have_our_bytes_and_cids() -> None:
    fixtures = json.loads((interop_dir() / "data-model/data-model-fixtures.json").read_text())
    assert len(fixtures) >= 3
    for fixture in fixtures:
        content = base64.b64decode(fixture["cbor_base64"] + "==")
        data = from_json(parse_json(json.dumps(fixture["json"]).encode()))
        assert cbor.encode(data) == cbor.encode_python(data) == content
        assert cbor.decode(content) == cbor.decode_python(content) == data
        assert str(Cid.of_data(content)) == fixture["cid"]
        assert to_json(data) == fixture["json"]


def test_published_valid_and_invalid_data_is_judged_so() -> None:
    folder = interop_dir() / "data-model"
    for case in json.loads((folder / "data-model-valid.json").read_text()):
        record_from_json(parse_json(json.dumps(case["json"]).encode()))
    for case in json.loads((folder / "data-model-invalid.json").read_text()):
        with pytest.raises(InvalidData):
            record_from_json(parse_json(json.dumps(case["json"]).encode()))
