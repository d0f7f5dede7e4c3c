"""The tree by its definition: slow, plain, and written apart from `pds.protocol.mst`.

`build` follows the recursive constructor of the specification (REPO-21..REPO-27) with the general
CBOR encoder, so that the editor, the builder and the hand-made node bytes have something to equal.
"""

from collections.abc import Mapping
from hashlib import sha256

from pds.protocol import cbor
from pds.protocol.cid import Cid
from pds.protocol.mst.node import Node
from pds.protocol.mst.tree import MissingBlock


def depth(key: bytes) -> int:
    """Count leading zero bits two by two."""
    bits = "".join(f"{byte:08b}" for byte in sha256(key).digest())
    return (len(bits) - len(bits.lstrip("0"))) // 2


def build(records: Mapping[bytes, Cid]) -> tuple[Cid, dict[Cid, bytes]]:
    """Return the root and all node blocks of the tree that holds `records`."""
    blocks: dict[Cid, bytes] = {}
    if not records:
        return store(blocks, None, [], []), blocks
    top = max(depth(key) for key in records)
    root = subtree(blocks, sorted(records.items()), top)
    assert root is not None
    return root, blocks


def subtree(blocks, items, level):
    """Build one level and what hangs below it."""
    if not items:
        return None
    gaps = [[]]
    here = []
    for key, value in items:
        if depth(key) == level:
            here.append((key, value))
            gaps.append([])
        else:
            gaps[-1].append((key, value))
    children = [subtree(blocks, gap, level - 1) for gap in gaps]
    return store(blocks, children[0], here, children[1:])


def store(blocks, left, entries, rights):
    """Encode a node with the general encoder."""
    items = []
    previous = b""
    for (key, value), right in zip(entries, rights, strict=True):
        shared = 0
        while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
            shared += 1
        items.append({"p": shared, "k": key[shared:], "v": value, "t": right})
        previous = key
    block = cbor.encode({"l": left, "e": items})
    cid = Cid.of_data(block)
    blocks[cid] = block
    return cid


class Nodes(dict):
    """A node source over decoded nodes; remembers what was asked for."""

    def __init__(self, nodes=()):
        super().__init__((node.cid, node) for node in nodes)
        self.asked = set()

    def node(self, cid: Cid) -> Node:
        """Return a node or say that it is missing."""
        if cid not in self:
            raise MissingBlock(cid)
        self.asked.add(cid)
        return self[cid]


def keys_by_depth(deepest: int, each: int) -> dict[int, list[bytes]]:
    """Find `each` keys of every depth up to `deepest` by trying."""
    found: dict[int, list[bytes]] = {level: [] for level in range(deepest + 1)}
    number = 0
    while any(len(keys) < each for keys in found.values()):
        key = b"com.example.record/%d" % number
        level = depth(key)
        if level <= deepest and len(found[level]) < each:
            found[level].append(key)
        number += 1
    return found
