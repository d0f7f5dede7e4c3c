"""The commit object, version 3: the signed head of a repo.

A commit names the account, the root of its tree (`data`) and a strictly growing `rev`, and is
signed by the account's signing key over the canonical CBOR of all its other fields. Its CID is that
of the signed bytes. `prev` is a relic: the key must be there, and we always write null.

Only version 3 is read. A block that does not re-encode to itself is not a commit: the CBOR codec
refuses every non-canonical form, and unknown fields are refused here.
"""

from typing import Final, NamedTuple

from pds.errors import ProtocolError
from pds.protocol.cbor import CborError, Data, decode, encode, encode_trusted
from pds.protocol.cid import Cid
from pds.protocol.keys import PublicKey, Signer
from pds.protocol.syntax import Did, InvalidSyntax, Tid, parse_did, parse_tid

COMMIT_VERSION: Final = 3
MAX_SIGNATURE_BYTES: Final = 128
"""Longest `sig` that is read; a valid one has 64 bytes, and is judged by `verify_commit`."""

_FIELDS: Final = frozenset({"did", "version", "data", "rev", "prev", "sig"})


class InvalidCommit(ProtocolError):
    """A block that is not a version 3 commit."""


class Commit(NamedTuple):
    """A signed commit; `sig` is not yet verified unless `verify_commit` said so."""

    did: Did
    data: Cid
    rev: Tid
    sig: bytes
    prev: Cid | None = None
    version: int = COMMIT_VERSION


class SignedCommit(NamedTuple):
    """A commit that we signed, with its encoded block and the CID of that block."""

    commit: Commit
    cid: Cid
    block: bytes


def sign_commit(signer: Signer, *, did: Did, data: Cid, rev: Tid) -> SignedCommit:
    """Sign a commit of `did` with the tree root `data` at `rev`, and encode it.

    Spec: repository#commit-objects (REPO-1, REPO-2)
    """
    fields = _unsigned_fields(did, data, rev, None)
    sig = signer.sign(encode_trusted(fields))
    fields["sig"] = sig
    block = encode_trusted(fields)
    return SignedCommit(Commit(did, data, rev, sig), Cid.of_data(block), block)


def decode_commit(block: bytes) -> Commit:
    """Decode a commit block and check its structure, not its signature.

    Raises: InvalidCommit for another version, missing, unknown or ill-typed fields, links that are
    not blessed, or bytes that are not canonical. Spec: repository#commit-objects (REPO-5)
    """
    try:
        fields = decode(block)
    except CborError as error:
        raise InvalidCommit("commit is not canonical CBOR") from error
    if not isinstance(fields, dict):
        raise InvalidCommit("commit is not a map")
    version = fields.get("version")
    if isinstance(version, bool) or version != COMMIT_VERSION:
        raise InvalidCommit("commit version is not 3")
    if fields.keys() != _FIELDS:
        raise InvalidCommit("commit has missing or unknown fields")
    sig = fields["sig"]
    if (
        not isinstance(sig, bytes)
        or isinstance(sig, Cid)
        or not 0 < len(sig) <= MAX_SIGNATURE_BYTES
    ):
        raise InvalidCommit("commit signature is missing or too long")
    prev = fields["prev"]
    return Commit(
        did=_parse_did(fields["did"]),
        data=_check_link(fields["data"]),
        rev=_parse_rev(fields["rev"]),
        sig=sig,
        prev=None if prev is None else _check_link(prev),
    )


def verify_commit(commit: Commit, key: PublicKey) -> bool:
    """Return whether the commit's signature is valid and was made by `key` (REPO-1, DM-51)."""
    fields = _unsigned_fields(commit.did, commit.data, commit.rev, commit.prev)
    return key.verify(commit.sig, encode(fields))


def _unsigned_fields(did: Did, data: Cid, rev: Tid, prev: Cid | None) -> dict[str, Data]:
    return {"did": did, "version": COMMIT_VERSION, "data": data, "rev": rev, "prev": prev}


def _parse_did(value: Data) -> Did:
    if not isinstance(value, str):
        raise InvalidCommit("commit did is not a string")
    try:
        return parse_did(value)
    except InvalidSyntax as error:
        raise InvalidCommit("commit did is not a DID") from error


def _parse_rev(value: Data) -> Tid:
    if not isinstance(value, str):
        raise InvalidCommit("commit rev is not a string")
    try:
        return parse_tid(value)
    except InvalidSyntax as error:
        raise InvalidCommit("commit rev is not a TID") from error


def _check_link(value: Data) -> Cid:
    if not isinstance(value, Cid) or not value.is_blessed_data:
        raise InvalidCommit("commit link is not a sha-256 CID of dag-cbor data")
    return value
