"""One node of the tree: its shape in memory and its bytes.

A node is a list of entries in key order with links to child nodes around them:

    children[0]  keys[0]  children[1]  keys[1]  ...  keys[n-1]  children[n]

On the wire that is `{e: [{k, p, t, v}, ...], l}`: `l` is `children[0]`, each entry's `t` the child
to its right, `v` the record, `p` how many bytes of the key are shared with the key before it in the
same node and `k` the rest (REPO-25, REPO-26). The shared prefix is always taken whole, so a set of
entries has one encoding and one CID.

The bytes are put together by hand because every write encodes about seven nodes; tests hold them
equal to `cbor.encode`. Foreign bytes are parsed and encoded again: equal bytes mean that they were
canonical CBOR with exactly the right fields and maximal prefixes.
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Final, final

from pds.errors import ProtocolError
from pds.protocol.cid import Cid, InvalidCid, decode_cid

MAX_KEY_BYTES: Final = 1024
"""Longest key (REPO-11); a valid path has at most 830 bytes."""

MAX_ENTRIES: Final = 128
"""Most entries of one node (REPO-29). An honest node has more with a chance of 0.75^128 < 1e-15;
only mined keys do, and they would make every small write rewrite a huge node."""

MAX_DEPTH: Final = 32
"""Greatest depth of a key (REPO-29): an honest key is deeper with a chance of 2^-64."""


class InvalidNode(ProtocolError):
    """Bytes that are not a tree node, or not in the one valid form."""


@final
class Node:
    """An immutable decoded node. Never change one: caches share them between trees."""

    __slots__ = ("block", "children", "cid", "keys", "values")

    def __init__(
        self,
        cid: Cid,
        block: bytes,
        keys: tuple[bytes, ...],
        values: tuple[Cid, ...],
        children: tuple[Cid | None, ...],
    ) -> None:
        self.cid = cid
        self.block = block
        self.keys = keys
        self.values = values
        self.children = children

    def __repr__(self) -> str:
        return f"Node({self.cid}, {len(self.keys)} entries)"


def key_depth(key: bytes) -> int:
    """Return the depth of `key`: leading zero bits of its SHA-256, two by two (REPO-20)."""
    digest = sha256(key).digest()
    head = int.from_bytes(digest[:8])
    if head:
        return (64 - head.bit_length()) >> 1
    return (256 - int.from_bytes(digest).bit_length()) >> 1


def common_prefix(left: bytes, right: bytes) -> int:
    """Return how many leading bytes `left` and `right` share (REPO-26)."""
    size = min(len(left), len(right))
    differing = int.from_bytes(left[:size]) ^ int.from_bytes(right[:size])
    return size - ((differing.bit_length() + 7) >> 3)


def _head(major: int, number: int) -> bytes:
    """Encode a CBOR head with the shortest form of a number below 65536."""
    if number < 24:
        return bytes([major | number])
    if number < 256:
        return bytes([major | 24, number])
    return bytes([major | 25]) + number.to_bytes(2)


_ENTRY_KEY: Final = tuple(b"\xa4\x61k" + _head(0x40, size) for size in range(MAX_KEY_BYTES + 1))
_ENTRY_PREFIX: Final = tuple(
    b"\x61p" + _head(0x00, size) + b"\x61t" for size in range(MAX_KEY_BYTES + 1)
)
_LINK: Final = b"\xd8\x2a\x58\x25\x00"
_NULL: Final = b"\xf6"
_BLESSED_CID_BYTES: Final = 36


def _encode_link(cid: Cid) -> bytes:
    if len(cid) == _BLESSED_CID_BYTES:
        return _LINK + cid
    return b"\xd8\x2a" + _head(0x40, len(cid) + 1) + b"\x00" + cid


def encode_node(
    keys: Sequence[bytes], values: Sequence[Cid], children: Sequence[Cid | None]
) -> bytes:
    """Return the canonical bytes of a node (`children` has one more item than `keys`).

    Raises: InvalidNode for a key over `MAX_KEY_BYTES`. Spec: repository#mst-structure (REPO-25)
    """
    parts = [b"\xa2\x61e", _head(0x80, len(keys))]
    previous = b""
    for at, key in enumerate(keys):
        shared = common_prefix(previous, key) if previous else 0
        rest = key[shared:] if shared else key
        if len(key) > MAX_KEY_BYTES:
            raise InvalidNode("key too long")
        child = children[at + 1]
        value = values[at]
        parts += (
            _ENTRY_KEY[len(rest)],
            rest,
            _ENTRY_PREFIX[shared],
            _NULL if child is None else _LINK + child,
            b"\x61v",
            _LINK + value if len(value) == _BLESSED_CID_BYTES else _encode_link(value),
        )
        previous = key
    first = children[0]
    parts += (b"\x61l", _NULL if first is None else _LINK + first)
    return b"".join(parts)


def make_node(keys: Sequence[bytes], values: Sequence[Cid], children: Sequence[Cid | None]) -> Node:
    """Encode a node and return it with its bytes and CID."""
    block = encode_node(keys, values, children)
    return Node(Cid.of_data(block), block, tuple(keys), tuple(values), tuple(children))


def relink(node: Node, children: Sequence[Cid | None]) -> bytes:
    """Return the bytes of `node` with other `children` and the same entries.

    A link is replaced in place. No key can look like one (keys are ASCII, links are not), and no
    child comes twice in a node (its keys would), so exactly one place matches.
    """
    block = node.block
    for at, (old, new) in enumerate(zip(node.children, children, strict=True)):
        if new is old:
            continue
        if old is None or new is None:
            return encode_node(node.keys, node.values, children)
        tag = b"\x61t" + _LINK if at else b"\x61l" + _LINK
        block = block.replace(tag + old, tag + new, 1)
    return block


def decode_node(cid: Cid, block: bytes) -> Node:
    """Decode a node of unknown origin; `block` must hash to `cid`.

    Checked: the hash, the exact canonical form with maximal prefixes, ASCII keys in order, blessed
    child links, well-formed record links (any codec and hash: DM-31), at most `MAX_ENTRIES`
    entries. What needs the rest of the tree (depths, empty nodes) is the caller's part.

    Raises: InvalidNode. Spec: repository#mst-structure (REPO-28)
    """
    node = decode_own_node(cid, block)
    keys = node.keys
    if len(keys) > MAX_ENTRIES:
        raise InvalidNode("node has too many entries")
    if any(left >= right for left, right in pairwise(keys)):
        raise InvalidNode("keys are not in increasing order")
    if not all(key.isascii() for key in keys):
        raise InvalidNode("a key is not ASCII")
    try:
        for value in node.values:
            decode_cid(value)
    except InvalidCid as error:
        raise InvalidNode("a record link is not a CID") from error
    if any(child is not None and not child.is_blessed_data for child in node.children):
        raise InvalidNode("a child link is not a dag-cbor sha-256 CID")
    links = [child for child in node.children if child is not None]
    if len(set(links)) != len(links):
        raise InvalidNode("a child comes twice")
    if encode_node(keys, node.values, node.children) != block:
        raise InvalidNode("node is not in its canonical form")
    return node


def decode_own_node(cid: Cid, block: bytes) -> Node:
    """Decode a node that this host encoded or checked before; `block` must hash to `cid`.

    The hash is still compared, so a damaged row is never taken for a node.
    Raises: InvalidNode.
    """
    if Cid.of_data(block) != cid:
        raise InvalidNode("node bytes do not match their CID")
    try:
        keys, values, children = _parse(block)
    except IndexError as error:
        raise InvalidNode("node is cut short") from error
    return Node(cid, block, tuple(keys), tuple(values), tuple(children))


def _parse(block: bytes) -> tuple[list[bytes], list[Cid], list[Cid | None]]:
    """Take a node apart, fast, without looking at what is fixed.

    What is fixed is known from the hash (our own nodes) or seen when the parts are encoded again
    and compared (foreign ones). Reading past the end raises IndexError.
    """
    count, at = _read_head(block, 3, 0x80)
    keys: list[bytes] = []
    values: list[Cid] = []
    children: list[Cid | None] = [None]
    previous = b""
    for _ in range(count):
        size = block[at + 3] - 0x40
        if 0 <= size < 24:
            at += 4
        else:
            size, at = _read_head(block, at + 3, 0x40)
        rest = block[at : at + size]
        at += size
        shared = block[at + 2]
        if shared < 24:
            at += 5
        else:
            shared, at = _read_head(block, at + 2, 0x00)
            at += 2
        previous = previous[:shared] + rest if shared else rest
        keys.append(previous)
        if block[at] == 0xF6:
            children.append(None)
            at += 3
        elif block[at + 3] == 0x25:
            children.append(Cid(block[at + 5 : at + 41]))
            at += 43
        else:
            raise InvalidNode("a child link is not a dag-cbor sha-256 CID")
        if block[at + 3] == 0x25:
            values.append(Cid(block[at + 5 : at + 41]))
            at += 41
        else:
            value, at = _read_link(block, at)
            values.append(value)
    if block[at + 2] != 0xF6:
        children[0] = Cid(block[at + 7 : at + 43])
        at += 40
    if at + 3 != len(block):
        raise InvalidNode("node is cut short, or bytes follow it")
    return keys, values, children


_LINKS_OF_ENTRY: Final = re.compile(
    rb"at(?:\xf6|\xd8\x2aX%\x00(.{36}))av\xd8\x2aX%\x00(.{36})", re.DOTALL
)


def read_links(cid: Cid, block: bytes) -> list[Cid | bytes]:
    """Return what one of our own nodes links to, last first: children as `Cid`, records as `bytes`.

    For exports, which need the order and nothing else; a third of the cost of decoding. A key
    cannot look like a link, because keys are ASCII.
    Raises: InvalidNode, also for record links of unusual length.
    """
    if Cid.of_data(block) != cid:
        raise InvalidNode("node bytes do not match their CID")
    found = _LINKS_OF_ENTRY.findall(block)
    if len(found) != _read_head(block, 3, 0x80)[0]:
        raise InvalidNode("not a tree node")
    links: list[Cid | bytes] = []
    for child, record in reversed(found):
        if child:
            links.append(Cid(child))
        links.append(record)
    if block[-43:-36] == b"al" + _LINK:
        links.append(Cid(block[-36:]))
    return links


def _read_head(block: bytes, at: int, major: int) -> tuple[int, int]:
    byte = block[at]
    number = byte - major
    if 0 <= number < 24:
        return number, at + 1
    if number == 24:
        return block[at + 1], at + 2
    if number == 25:
        return block[at + 1] << 8 | block[at + 2], at + 3
    raise InvalidNode("not a tree node")


def _read_link(block: bytes, at: int) -> tuple[Cid, int]:
    """Read a link of unusual length."""
    size, at = _read_head(block, at + 2, 0x40)
    if size < 2 or block[at] != 0:
        raise InvalidNode("not a link")
    return Cid(block[at + 1 : at + size]), at + size


EMPTY_NODE: Final = make_node((), (), (None,))
"""The root of an empty repo (REPO-24)."""
