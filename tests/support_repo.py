"""Repos as other hosts have them: made of records, signed with any key, packed as CARs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pds.protocol import cbor
from pds.protocol.car import encode_car
from pds.protocol.cid import Cid
from pds.protocol.commit import sign_commit
from pds.protocol.keys import Signer
from pds.protocol.mst.node import Node
from pds.protocol.mst.tree import build_tree, walk_preorder
from pds.protocol.syntax import Did, Tid


class Nodes:
    """The nodes of one tree, as a source."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.by_cid = {node.cid: node for node in nodes}

    def node(self, cid: Cid) -> Node:
        return self.by_cid[cid]


@dataclass(frozen=True)
class ForeignRepo:
    """A repo with its blocks in streamable order: commit, nodes and records."""

    root: Cid
    data: Cid
    rev: Tid
    blocks: dict[Cid, bytes]
    records: dict[str, Cid]

    def car(self, *, without: Iterable[Cid] = (), order: Any = None) -> bytes:
        """Return it as a CAR, in another order or with blocks left out if need be."""
        left_out = set(without)
        blocks = [item for item in self.blocks.items() if item[0] not in left_out]
        return encode_car((self.root,), sorted(blocks, key=order) if order else blocks)


def make_repo(
    did: str, signer: Signer, records: Mapping[str, Any], *, rev: Tid, data: Cid | None = None
) -> ForeignRepo:
    """Make a repo of records (values, or blocks); `data` replaces the root of the tree."""
    blocks = {
        path: value if isinstance(value, bytes) else cbor.encode(value)
        for path, value in records.items()
    }
    cids = {path: Cid.of_data(block) for path, block in blocks.items()}
    nodes = Nodes(build_tree(sorted((path.encode(), cid) for path, cid in cids.items())))
    root = list(nodes.by_cid)[-1]
    signed = sign_commit(signer, did=Did(did), data=data or root, rev=rev)
    found = {signed.cid: signed.block}
    for item in walk_preorder(root, nodes):
        if isinstance(item, Node):
            found[item.cid] = item.block
        else:
            found[item[1]] = blocks[item[0].decode()]
    return ForeignRepo(signed.cid, data or root, rev, found, cids)
