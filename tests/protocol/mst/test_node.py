"""One node: depth, prefixes, bytes, and refusing what is not in the one valid form."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.protocol import cbor
from pds.protocol.cid import Cid, decode_cid
from pds.protocol.mst.node import (
    EMPTY_NODE,
    MAX_ENTRIES,
    MAX_KEY_BYTES,
    InvalidNode,
    common_prefix,
    decode_node,
    decode_own_node,
    encode_node,
    key_depth,
    make_node,
    relink,
)
from tests.protocol.mst import reference
from tests.support import interop_dir

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "mst.json").read_text())
A, B, C = (Cid.of_data(bytes([n])) for n in range(3))
SHA_512 = decode_cid(bytes([1, 0x71, 0x13, 64]) + bytes(64))


def decode_block(block: bytes):
    return decode_node(Cid.of_data(block), block)


def test_depths_of_our_own_vectors():
    """REPO-20."""
    for case in VECTORS["depths"]:
        assert key_depth(case["key"].encode()) == case["depth"]


@pytest.mark.parametrize(
    ("key", "depth"),
    [("", 0), ("asdf", 0), ("blue", 1), ("2653ae71", 0), ("88bfafc7", 2), ("2a92d355", 4)],
)
def test_depths_of_the_specification(key, depth):
    """REPO-20."""
    assert key_depth(key.encode()) == depth


def test_depths_of_the_interop_files():
    """REPO-20."""
    cases = json.loads((interop_dir() / "mst" / "key_heights.json").read_text())
    for case in cases:
        assert key_depth(case["key"].encode()) == case["height"]


def test_prefixes_of_the_interop_files():
    """REPO-26."""
    cases = json.loads((interop_dir() / "mst" / "common_prefix.json").read_text())
    for case in cases:
        assert common_prefix(case["left"].encode(), case["right"].encode()) == case["len"]


@given(st.binary(max_size=12), st.binary(max_size=6), st.binary(max_size=6))
def test_common_prefix_equals_a_byte_loop(shared, left, right):
    a, b = shared + left, shared + right
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix(a, b) == expected


def test_empty_node_is_the_one_of_the_specification():
    """REPO-24."""
    assert EMPTY_NODE.block.hex() == "a2616580616cf6"
    assert str(EMPTY_NODE.cid) == VECTORS["empty_root"]
    assert str(EMPTY_NODE.cid) == "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"


LINKS = st.sampled_from([A, B, C])
NODES = st.lists(
    st.tuples(
        st.text(st.characters(max_codepoint=126, min_codepoint=45), min_size=1, max_size=300),
        st.sampled_from([A, B, SHA_512, Cid.of_raw(b"x")]),
        st.none() | LINKS,
    ),
    unique_by=lambda entry: entry[0],
    max_size=30,
)


@given(NODES, st.none() | LINKS)
@settings(max_examples=60, deadline=None)
def test_hand_made_bytes_equal_the_general_encoder(entries, left):
    """REPO-25, REPO-26, REPO-27."""
    entries.sort()
    keys = [key.encode() for key, _value, _child in entries]
    values = [value for _key, value, _child in entries]
    children = [left, *(child for _key, _value, child in entries)]
    blocks: dict[Cid, bytes] = {}
    pairs = list(zip(keys, values, strict=True))
    cid = reference.store(blocks, left, pairs, children[1:])
    assert encode_node(keys, values, children) == blocks[cid]
    if len(set(children) - {None}) != sum(child is not None for child in children):
        return
    node = decode_node(cid, blocks[cid])
    assert (list(node.keys), list(node.values), list(node.children)) == (keys, values, children)


@given(NODES, st.data())
@settings(max_examples=60, deadline=None)
def test_relinking_equals_encoding_again(entries, data):
    entries.sort()
    keys = [key.encode() for key, _value, _child in entries]
    old = [
        Cid.of_data(b"old%d" % at) if data.draw(st.booleans()) else None
        for at in range(len(keys) + 1)
    ]
    node = make_node(keys, [e[1] for e in entries], old)
    new = [Cid.of_data(b"new%d" % at) for at in range(len(node.children))]
    children = [
        data.draw(st.sampled_from([old, None, new[at]])) for at, old in enumerate(node.children)
    ]
    assert relink(node, children) == encode_node(node.keys, node.values, children)


def entry(**changes):
    return {"p": 0, "k": b"a/a", "v": A, "t": None} | changes


def node_block(*entries, **changes):
    return cbor.encode({"e": list(entries), "l": None} | changes)


BAD_NODES = {
    "not a map": cbor.encode([]),
    "no entries": cbor.encode({"l": None}),
    "no left link": cbor.encode({"e": []}),
    "another field": node_block(x=1),
    "left is a string": node_block(l="x"),
    "left is raw": node_block(l=Cid.of_raw(b"x")),
    "left is sha-512": node_block(l=SHA_512),
    "entry is not a map": node_block(1),
    "entry without t": node_block({"p": 0, "k": b"a", "v": A}),
    "entry with another field": node_block(entry(x=1)),
    "key is text": node_block(entry(k="a/a")),
    "key is not ascii": node_block(entry(k=b"a/\xff")),
    "key is too long": node_block(entry(k=b"a/" + b"b" * MAX_KEY_BYTES)),
    "record is null": node_block(entry(v=None)),
    "child is raw": node_block(entry(t=Cid.of_raw(b"x"))),
    "negative prefix": node_block(entry(), entry(p=-1)),
    "prefix of the first entry": node_block(entry(p=1)),
    "prefix longer than the key before": node_block(entry(), entry(p=4, k=b"b")),
    "prefix not maximal": node_block(entry(), entry(p=1, k=b"/b")),
    "no prefix at all": node_block(entry(), entry(k=b"a/b")),
    "keys out of order": node_block(entry(k=b"b/b"), entry(k=b"a/a")),
    "the same child twice": node_block(entry(t=B), entry(p=2, k=b"b", t=B)),
    "the same key twice": node_block(entry(), entry(p=3, k=b"")),
    "bytes after the node": node_block(entry()) + b"\x00",
    "cut short": node_block(entry(), entry(p=2, k=b"b"))[:-7],
    "cut in a link": node_block(entry())[:-30],
    "not the shortest number": node_block(entry()).replace(b"\x61p\x00", b"\x61p\x18\x00"),
    "an empty CID": node_block(entry()).replace(b"\xd8\x2a\x58\x25\x00" + A, b"\xd8\x2a\x41\x00"),
    "a CID that is none": node_block(entry()).replace(
        b"\xd8\x2a\x58\x25\x00" + A, b"\xd8\x2a\x43\x00\x01\x02"
    ),
    "nothing": b"",
}


@pytest.mark.parametrize("block", BAD_NODES.values(), ids=BAD_NODES.keys())
def test_what_is_not_a_node_is_refused(block):
    """REPO-25, REPO-26, REPO-28."""
    with pytest.raises(InvalidNode):
        decode_block(block)


def test_bytes_that_do_not_match_the_cid_are_refused_even_as_our_own():
    block = bytearray(node_block(entry()))
    block[-1] ^= 1
    with pytest.raises(InvalidNode, match="CID"):
        decode_own_node(Cid.of_data(node_block(entry())), bytes(block))


def test_a_record_link_may_have_any_codec_and_hash():
    """DM-31."""
    for value in (SHA_512, Cid.of_raw(b"x")):
        assert decode_block(node_block(entry(v=value))).values == (value,)


def test_a_node_has_at_most_128_entries():
    """REPO-29."""
    keys = [b"a/%04d" % number for number in range(MAX_ENTRIES + 1)]
    wide = make_node(keys[:-1], [A] * MAX_ENTRIES, [None] * (MAX_ENTRIES + 1))
    assert len(decode_node(wide.cid, wide.block).keys) == MAX_ENTRIES
    wider = make_node(keys, [A] * (MAX_ENTRIES + 1), [None] * (MAX_ENTRIES + 2))
    with pytest.raises(InvalidNode, match="entries"):
        decode_node(wider.cid, wider.block)


def is_node_by_definition(block: bytes) -> bool:
    """Judge with the general decoder and plain checks."""
    try:
        value = cbor.decode(block)
    except cbor.CborError:
        return False
    if not isinstance(value, dict) or set(value) != {"e", "l"} or not isinstance(value["e"], list):
        return False
    links = [value["l"]]
    previous = b""
    for item in value["e"]:
        if not isinstance(item, dict) or set(item) != {"k", "p", "t", "v"}:
            return False
        shared, rest = item["p"], item["k"]
        if type(shared) is not int or type(rest) is not bytes or type(item["v"]) is not Cid:
            return False
        if not 0 <= shared <= len(previous):
            return False
        key = previous[:shared] + rest
        if key <= previous and value["e"][0] is not item:
            return False
        if shared != common_prefix(previous, key) or not key.isascii():
            return False
        previous = key
        links.append(item["t"])
    links = [link for link in links if link is not None]
    if len(set(links)) != len(links):
        return False
    return all(type(link) is Cid and link.is_blessed_data for link in links)


@given(NODES, st.none() | LINKS, st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_nodes_get_the_same_verdict_as_from_the_general_decoder(entries, left, data):
    entries = sorted(entries)[:4]
    keys = [key.encode() for key, _value, _child in entries]
    block = bytearray(encode_node(keys, [e[1] for e in entries], [left, *(e[2] for e in entries)]))
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(block) - 1))
        block[at] = data.draw(st.integers(0, 255))
    damaged = bytes(block)
    try:
        decode_block(damaged)
    except InvalidNode:
        assert not is_node_by_definition(damaged)
    else:
        assert is_node_by_definition(damaged)
