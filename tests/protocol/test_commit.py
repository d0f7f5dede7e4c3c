"""The version 3 commit (REPO-1, REPO-2, REPO-5)."""

from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.protocol.cbor import encode
from pds.protocol.cid import Cid
from pds.protocol.commit import InvalidCommit, decode_commit, sign_commit, verify_commit
from pds.protocol.keys import Curve, generate_secret, make_signer
from pds.protocol.syntax import parse_did, parse_tid

SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SECP256R1_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
DID = parse_did("did:plc:ewvi7nxzyoun6zhxrhs64oiz")
REV = parse_tid("3jzfcijpj2z2a")
ROOT = Cid.of_data(b"\xa2aL\xf6ae\x80")
K256 = make_signer("k256", generate_secret("k256", b"k" * 32))
P256 = make_signer("p256", generate_secret("p256", b"k" * 32))
SIGNED = sign_commit(K256, did=DID, data=ROOT, rev=REV)


def fields(**changes: Any) -> dict[str, Any]:
    commit = SIGNED.commit
    value = {
        "did": commit.did,
        "version": 3,
        "data": commit.data,
        "rev": commit.rev,
        "prev": None,
        "sig": commit.sig,
        **changes,
    }
    return {name: part for name, part in value.items() if part != "missing"}


@pytest.mark.parametrize("curve", ["k256", "p256"])
def test_a_signed_commit_decodes_and_verifies(curve: Curve) -> None:
    signer = make_signer(curve, generate_secret(curve, b"c" * 32))
    signed = sign_commit(signer, did=DID, data=ROOT, rev=REV)
    assert signed.cid == Cid.of_data(signed.block)
    assert decode_commit(signed.block) == signed.commit
    assert verify_commit(signed.commit, signer.public_key)
    assert not verify_commit(signed.commit, (P256 if curve == "k256" else K256).public_key)


@pytest.mark.parametrize("curve", ["k256", "p256"])
def test_another_valid_signature_of_the_same_commit_verifies_as_well(curve: Curve) -> None:
    """DM-54: signers that draw random numbers make other bytes each time, and all are valid."""
    secret = generate_secret(curve, b"c" * 32)
    signer = make_signer(curve, secret)
    signed = sign_commit(signer, did=DID, data=ROOT, rev=REV).commit
    unsigned = {"did": DID, "version": 3, "data": ROOT, "rev": REV, "prev": None}
    group = ec.SECP256K1() if curve == "k256" else ec.SECP256R1()
    order = SECP256K1_ORDER if curve == "k256" else SECP256R1_ORDER
    key = ec.derive_private_key(int.from_bytes(secret, "big"), group)
    r, s = decode_dss_signature(key.sign(encode(unsigned), ec.ECDSA(hashes.SHA256())))
    other = r.to_bytes(32, "big") + min(s, order - s).to_bytes(32, "big")
    assert other != signed.sig
    assert verify_commit(signed._replace(sig=other), signer.public_key)


def test_the_signed_bytes_equal_an_independent_construction() -> None:
    """REPO-1, REPO-2: all fields but sig, prev null, canonical key order."""
    unsigned = {
        "did": DID,
        "version": 3,
        "data": cbor2.CBORTag(42, b"\0" + bytes(ROOT)),
        "rev": REV,
        "prev": None,
    }
    sig = K256.sign(cbor2.dumps(unsigned, canonical=True))
    assert SIGNED.block == cbor2.dumps({**unsigned, "sig": sig}, canonical=True)
    assert encode(fields()) == SIGNED.block


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": 4},
        {"version": True},
        {"version": "3"},
        {"version": "missing"},
        {"prev": "missing"},
        {"sig": "missing"},
        {"did": "missing"},
        {"sig": b""},
        {"sig": b"x" * 129},
        {"sig": None},
        {"sig": ROOT},
        {"did": "alice.example.com"},
        {"did": None},
        {"rev": "not-a-tid"},
        {"rev": 5},
        {"data": str(ROOT)},
        {"data": None},
        {"data": Cid.of_raw(b"x")},
        {"prev": Cid.of_raw(b"x")},
        {"prev": "x"},
        {"extra": 1},
    ],
    ids=str,
)
def test_other_shapes_are_not_commits(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidCommit):
        decode_commit(encode(fields(**changes)))


@pytest.mark.parametrize("block", [b"", b"\xa0", b"\x83\1\2\3", b"\xff", SIGNED.block + b"\0"])
def test_other_bytes_are_not_commits(block: bytes) -> None:
    with pytest.raises(InvalidCommit):
        decode_commit(block)


def test_a_commit_with_prev_is_read_and_covered_by_the_signature() -> None:
    """REPO-5: old repos have a prev link."""
    unsigned = {**fields(prev=ROOT)}
    del unsigned["sig"]
    block = encode({**unsigned, "sig": K256.sign(encode(unsigned))})
    assert verify_commit(decode_commit(block), K256.public_key)
    assert not verify_commit(decode_commit(encode(fields(prev=ROOT))), K256.public_key)


@settings(max_examples=50)
@given(at=st.integers(0, len(SIGNED.block) - 1), bit=st.integers(0, 7))
def test_one_flipped_bit_is_never_a_valid_commit(at: int, bit: int) -> None:
    changed = bytearray(SIGNED.block)
    changed[at] ^= 1 << bit
    try:
        commit = decode_commit(bytes(changed))
    except InvalidCommit:
        return
    assert not verify_commit(commit, K256.public_key)
