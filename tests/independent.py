"""A second opinion about repositories and the firehose.

Nothing of `pds` is imported here: CBOR is decoded by libipld, signatures are checked by OpenSSL,
and the tree is rebuilt from the definition (REPO-20..24) instead of being edited. What this module
accepts, a stranger's consumer accepts.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import libipld
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
CURVES: dict[bytes, tuple[ec.EllipticCurve, int]] = {
    b"\xe7\x01": (
        ec.SECP256K1(),
        0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
    ),
    b"\x80\x24": (
        ec.SECP256R1(),
        0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    ),
}
CBOR_CID = b"\x01\x71\x12\x20"


class Refused(AssertionError):
    """Something a strict consumer refuses."""


def demand(condition: object, what: str) -> None:
    if not condition:
        raise Refused(what)


def cid_of(block: bytes) -> bytes:
    return CBOR_CID + hashlib.sha256(block).digest()


def cid_text(cid: bytes) -> str:
    """Return the text form of a binary CID (DM-30)."""
    return "b" + base64.b32encode(cid).decode().lower().rstrip("=")


def check_signature(did_key: str, message: bytes, signature: bytes) -> None:
    """Check a 64-byte low-S signature against a did:key (DM-51, DM-52)."""
    number = 0
    for char in did_key.removeprefix("did:key:z"):
        number = number * 58 + BASE58.index(char)
    raw = number.to_bytes(35, "big")
    curve, order = CURVES[raw[:2]]
    key = ec.EllipticCurvePublicKey.from_encoded_point(curve, raw[2:])
    demand(len(signature) == 64, "signature is not 64 bytes")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    demand(s <= order // 2, "signature is high-S")
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise Refused("commit signature does not verify") from error


def read_car(car: bytes) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Split a CAR file and check the hash of every block (REPO-40, REPO-42)."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (car[at] & 0x7F) << shift
            at += 1
            if car[at - 1] < 0x80:
                return value, at
            shift += 7

    length, at = varint(0)
    header = libipld.decode_dag_cbor(car[at : at + length])
    demand(header["version"] == 1, "CAR version")
    at += length
    blocks: dict[bytes, bytes] = {}
    while at < len(car):
        length, at = varint(at)
        cid, block = car[at : at + 36], car[at + 36 : at + length]
        demand(hashlib.sha256(block).digest() == cid[4:], "a block does not match its CID")
        blocks[cid] = block
        at += length
    demand(at == len(car), "CAR is truncated")
    return header["roots"], blocks


def depth_of(key: bytes) -> int:
    """Return the tree depth of a key: half the leading zero bits of its hash (REPO-20)."""
    digest = hashlib.sha256(key).digest()
    zeros = 256 - int.from_bytes(digest, "big").bit_length()
    return zeros // 2


def build(items: list[tuple[bytes, bytes]], depth: int) -> bytes | None:
    """Return the CID of the subtree over sorted `items` at `depth`, from the definition alone."""
    if not items:
        return None
    heads: list[tuple[bytes, bytes]] = []
    gaps: list[list[tuple[bytes, bytes]]] = [[]]
    for item in items:
        if depth_of(item[0]) == depth:
            heads.append(item)
            gaps.append([])
        else:
            gaps[-1].append(item)
    entries, previous = [], b""
    for (key, value), gap in zip(heads, gaps[1:], strict=True):
        shared = 0
        while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
            shared += 1
        entries.append(
            {"p": shared, "k": key[shared:], "v": value, "t": build(gap, depth - 1)},
        )
        previous = key
    return cid_of(libipld.encode_dag_cbor({"l": build(gaps[0], depth - 1), "e": entries}))


def root_of(records: Mapping[str, bytes]) -> bytes:
    """Return the tree root for a whole repository (REPO-21..24)."""
    items = sorted((path.encode(), cid) for path, cid in records.items())
    if not items:
        return cid_of(bytes.fromhex("a2616580616cf6"))
    root = build(items, max(depth_of(key) for key, _ in items))
    assert root is not None
    return root


def check_commit(block: bytes, *, did: str, did_key: str) -> dict[str, Any]:
    """Check the commit object and its signature (REPO-1, REPO-2)."""
    commit: dict[str, Any] = libipld.decode_dag_cbor(block)
    demand(set(commit) == {"did", "version", "data", "rev", "prev", "sig"}, "commit fields")
    demand(commit["version"] == 3 and commit["prev"] is None, "commit version or prev")
    demand(commit["did"] == did, "commit is another account's")
    unsigned = {name: value for name, value in commit.items() if name != "sig"}
    check_signature(did_key, libipld.encode_dag_cbor(unsigned), commit["sig"])
    return commit


def check_export(car: bytes, *, did: str, did_key: str) -> dict[str, bytes]:
    """Check a full export and return its records, path -> CID."""
    roots, blocks = read_car(car)
    demand(len(roots) == 1, "an export has one root")
    commit = check_commit(blocks[roots[0]], did=did, did_key=did_key)
    records: dict[str, bytes] = {}
    reached = {roots[0]}

    def walk(cid: bytes) -> None:
        demand(cid in blocks, "a tree node is missing")
        reached.add(cid)
        node = libipld.decode_dag_cbor(blocks[cid])
        if node["l"] is not None:
            walk(node["l"])
        key = b""
        for entry in node["e"]:
            key = key[: entry["p"]] + entry["k"]
            demand(entry["v"] in blocks, "a record is missing")
            records[key.decode()] = entry["v"]
            reached.add(entry["v"])
            if entry["t"] is not None:
                walk(entry["t"])

    walk(commit["data"])
    demand(list(records) == sorted(records), "keys are not in order")
    demand(root_of(records) == commit["data"], "the tree is not the one of its records")
    demand(reached == set(blocks), "the export carries blocks that nothing refers to")
    return records


@dataclass
class RepoState:
    """What a consumer knows of one repository."""

    records: dict[str, bytes] = field(default_factory=dict)
    data: bytes | None = None
    rev: str | None = None
    active: bool = True


@dataclass
class Follower:
    """A consumer that believes nothing: it replays every event and rebuilds every tree.

    `did_keys` gives the signing key of each account, as its DID document has it.
    """

    did_keys: Mapping[str, str]
    repos: dict[str, RepoState] = field(default_factory=dict)
    last_seq: int = 0
    events: int = 0
    commits: int = 0

    def take(self, frame: bytes) -> tuple[str, dict[str, Any]]:
        """Check one firehose frame and apply it; returns its type and payload."""
        header, payload = libipld.decode_dag_cbor_multi(frame)
        demand(header.get("op") == 1, f"error frame {payload}")
        kind: str = header["t"]
        if kind == "#info":
            return kind, payload
        demand(payload["seq"] > self.last_seq, "seq does not increase")
        self.last_seq = payload["seq"]
        self.events += 1
        if kind == "#commit":
            self._commit(payload)
        elif kind == "#sync":
            self._sync(payload)
        elif kind == "#account":
            self.repos.setdefault(payload["did"], RepoState()).active = payload["active"]
        return kind, payload

    def _commit(self, event: dict[str, Any]) -> None:
        did = event["repo"]
        state = self.repos.setdefault(did, RepoState())
        demand(state.active, "commit of an inactive account")
        demand(not event["tooBig"] and not event["rebase"] and event["blobs"] == [], "old fields")
        demand(len(event["blocks"]) <= 2_000_000 and len(event["ops"]) <= 200, "event too large")
        roots, blocks = read_car(event["blocks"])
        demand(roots == [event["commit"]], "root of blocks is not the commit")
        commit = check_commit(blocks[event["commit"]], did=did, did_key=self.did_keys[did])
        demand(commit["rev"] == event["rev"], "rev differs")
        demand(state.rev is None or event["rev"] > state.rev, "rev does not increase")
        demand(event["since"] == state.rev, "since is not the previous rev")
        demand(event.get("prevData") == state.data, "prevData is not the previous tree")
        self._apply(event["ops"], state, blocks)
        demand(root_of(state.records) == commit["data"], "the tree is not the one of the ops")
        demand(invert(commit["data"], event["ops"], blocks) == (state.data or root_of({})), "inv")
        state.data, state.rev = commit["data"], event["rev"]
        self.commits += 1

    @staticmethod
    def _apply(ops: list[dict[str, Any]], state: RepoState, blocks: dict[bytes, bytes]) -> None:
        demand(len({op["path"] for op in ops}) == len(ops), "a path appears twice")
        for op in ops:
            path, cid, prev = op["path"], op["cid"], op.get("prev")
            if op["action"] == "create":
                demand(path not in state.records and "prev" not in op, "create of a known path")
            else:
                demand(state.records.get(path) == prev, "prev is not what was there")
                demand(prev != cid, "an update that changes nothing")
            if op["action"] == "delete":
                demand(cid is None, "delete with a cid")
                del state.records[path]
            else:
                demand(cid in blocks, "the record of an op is missing")
                state.records[path] = cid

    def _sync(self, event: dict[str, Any]) -> None:
        did = event["did"]
        roots, blocks = read_car(event["blocks"])
        demand(set(blocks) == set(roots) and len(event["blocks"]) <= 10_000, "sync blocks")
        commit = check_commit(blocks[roots[0]], did=did, did_key=self.did_keys[did])
        demand(commit["rev"] == event["rev"], "sync rev differs")
        state = self.repos.setdefault(did, RepoState())
        demand(state.rev is None or event["rev"] >= state.rev, "sync goes back")


def invert(root: bytes, ops: list[dict[str, Any]], blocks: dict[bytes, bytes]) -> bytes:
    """Undo `ops` on the partial tree in `blocks` and return the earlier root (REPO-66).

    The partial tree is unfolded to its known keys and opaque subtrees; an operation that reaches
    into an opaque subtree means that the covering proof is incomplete.
    """
    tree = _unfold(root, blocks)
    for op in sorted(ops, key=lambda op: (op["action"] != "delete", op["path"])):
        key = op["path"].encode()
        if op["action"] == "delete":
            demand(key not in tree.leaves, "a deleted key is there")
            tree.set(key, op["prev"])
        else:
            demand(tree.leaves.get(key) == op["cid"], "an op's record is not in the tree")
            if op["action"] == "create":
                tree.remove(key)
            else:
                tree.leaves[key] = op["prev"]
    return tree.root()


@dataclass
class _Partial:
    """A tree of which some subtrees are known only by CID, each in an interval of keys."""

    leaves: dict[bytes, bytes]
    opaque: list[tuple[bytes, bytes | None, int, bytes]]  # lower, upper, depth, cid

    def set(self, key: bytes, value: bytes) -> None:
        self._demand_open(key)
        self.leaves[key] = value

    def remove(self, key: bytes) -> None:
        del self.leaves[key]

    def _demand_open(self, key: bytes) -> None:
        for lower, upper, _depth, _cid in self.opaque:
            if lower < key and (upper is None or key < upper):
                raise Refused("covering proof lacks a node on the path of an op")

    def root(self) -> bytes:
        ordered = sorted(
            [(key, 1, depth_of(key), value) for key, value in self.leaves.items()]
            + [(lower, 2, depth, cid) for lower, _, depth, cid in self.opaque],
            key=lambda item: (item[0], item[1]),
        )
        top = max((item[2] for item in ordered), default=0)
        if not ordered:
            return root_of({})
        found = _fold(ordered, top)
        while found is not None and found[1]:
            top -= 1
            found = _fold(ordered, top)
        assert found is not None
        return found[0]


def _fold(ordered: list[tuple[bytes, int, int, bytes]], depth: int) -> tuple[bytes, bool] | None:
    """Encode the node at `depth` over leaves (1) and opaque subtrees (2) in key order."""
    if not ordered:
        return None
    if len(ordered) == 1 and ordered[0][1] == 2 and ordered[0][2] == depth:
        return ordered[0][3], False
    heads: list[tuple[bytes, bytes]] = []
    gaps: list[list[tuple[bytes, int, int, bytes]]] = [[]]
    for item in ordered:
        demand(item[1] == 1 or item[2] < depth, "covering proof lacks a node that must change")
        if item[1] == 1 and item[2] == depth:
            heads.append((item[0], item[3]))
            gaps.append([])
        else:
            gaps[-1].append(item)
    children = [_fold(gap, depth - 1) for gap in gaps]
    entries, previous = [], b""
    for (key, value), child in zip(heads, children[1:], strict=True):
        shared = 0
        while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
            shared += 1
        entries.append(
            {"p": shared, "k": key[shared:], "v": value, "t": child[0] if child else None},
        )
        previous = key
    left = children[0][0] if children[0] else None
    block = libipld.encode_dag_cbor({"l": left, "e": entries})
    return cid_of(block), not heads


def _unfold(root: bytes, blocks: dict[bytes, bytes]) -> _Partial:
    leaves: dict[bytes, bytes] = {}
    opaque: list[tuple[bytes, bytes | None, int, bytes]] = []

    def walk(cid: bytes, lower: bytes, upper: bytes | None, depth: int | None) -> None:
        if cid not in blocks:
            demand(depth is not None, "the root of the tree is missing")
            assert depth is not None
            opaque.append((lower, upper, depth, cid))
            return
        node = libipld.decode_dag_cbor(blocks[cid])
        keys, key = [], b""
        for entry in node["e"]:
            key = key[: entry["p"]] + entry["k"]
            keys.append(key)
            leaves[key] = entry["v"]
        if keys:
            depth = depth_of(keys[0])
        if depth is None:
            demand(node["l"] is None and not node["e"], "the root is a bare pointer")
            return
        bounds = [lower, *keys]
        uppers = [*keys, upper]
        children = [node["l"], *(entry["t"] for entry in node["e"])]
        for child, low, high in zip(children, bounds, uppers, strict=True):
            if child is not None:
                walk(child, low, high, depth - 1)

    walk(root, b"", None, None)
    return _Partial(leaves, opaque)
