"""did:plc operations: forms, hashes, signatures, limits, documents (ID-50..ID-59)."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from pds.protocol.encodings import encode_base64url
from pds.protocol.keys import generate_secret, make_signer
from pds.protocol.plc import (
    PlcError,
    PlcOperation,
    PlcService,
    check_limits,
    did_for_genesis,
    find_signer,
    is_did_key,
    make_handle_update,
    make_tombstone,
    make_update,
    op_cid,
    parse_operation,
    parse_state,
    render_document,
    sign_genesis,
    sign_operation,
)
from pds.protocol.syntax import Did, parse_handle

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "plc.json").read_text())
ROTATION = make_signer("k256", generate_secret("k256", b"rotation key 1 for the plc tests"))
RECOVERY = make_signer("p256", generate_secret("p256", b"recovery key 1 for the plc tests"))
SIGNING = make_signer("k256", generate_secret("k256", b"signing key 1 for the plc tests!"))
ALICE = parse_handle("alice.example.com")
PDS_URL = "https://pds.example.com"


def genesis() -> PlcOperation:
    return sign_genesis(
        ROTATION,
        rotation_keys=[RECOVERY.public_key.did_key, ROTATION.public_key.did_key],
        signing_key=SIGNING.public_key.did_key,
        handle=ALICE,
        pds_endpoint=PDS_URL,
    )


def independent_cid(fields: dict[str, Any]) -> str:
    digest = hashlib.sha256(cbor2.dumps(fields, canonical=True)).digest()
    return "b" + base64.b32encode(b"\x01\x71\x12\x20" + digest).decode().lower().rstrip("=")


def independent_did(fields: dict[str, Any]) -> str:
    digest = hashlib.sha256(cbor2.dumps(fields, canonical=True)).digest()
    return "did:plc:" + base64.b32encode(digest).decode().lower()[:24]


def test_a_genesis_operation_equals_an_independent_construction() -> None:
    """ID-50, ID-52, ID-53, ID-65."""
    operation = genesis()
    fields = operation.to_json()
    assert fields == {
        "type": "plc_operation",
        "rotationKeys": [RECOVERY.public_key.did_key, ROTATION.public_key.did_key],
        "verificationMethods": {"atproto": SIGNING.public_key.did_key},
        "alsoKnownAs": ["at://alice.example.com"],
        "services": {
            "atproto_pds": {"type": "AtprotoPersonalDataServer", "endpoint": PDS_URL},
        },
        "prev": None,
        "sig": operation.sig,
    }
    assert op_cid(operation) == independent_cid(fields)
    assert did_for_genesis(operation) == independent_did(fields)
    unsigned = {name: value for name, value in fields.items() if name != "sig"}
    sig = base64.urlsafe_b64decode(operation.sig + "==")
    point = ROTATION.public_key.compressed
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), point)
    der = encode_dss_signature(int.from_bytes(sig[:32], "big"), int.from_bytes(sig[32:], "big"))
    key.verify(der, cbor2.dumps(unsigned, canonical=True), ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("case", VECTORS["operations"], ids=lambda case: case["comment"])
def test_own_vectors_of_operations(case: dict[str, Any]) -> None:
    """ID-53; legacy operations state what they would today (ID-54)."""
    operation = parse_operation(case["operation"])
    assert operation.cid == case["cid"] == independent_cid(case["operation"])
    assert find_signer(operation, case["rotationKeys"]) == case["signer"]
    if "did" in case:
        assert did_for_genesis(operation) == case["did"] == independent_did(case["operation"])
    if operation.state is not None:
        did = Did(case.get("did", "did:plc:" + "a" * 24))
        assert operation.state.to_json(did) == {"did": did, **case["state"]}
    assert operation.is_tombstone is ("state" not in case)


@pytest.mark.parametrize("case", VECTORS["malformed"], ids=lambda case: case["comment"])
def test_own_vectors_of_malformed_operations_are_refused(case: dict[str, Any]) -> None:
    """ID-51."""
    with pytest.raises(PlcError):
        parse_operation(case["operation"])


@pytest.mark.parametrize("case", VECTORS["badly_signed"], ids=lambda case: case["comment"])
def test_own_vectors_of_bad_signatures_are_refused(case: dict[str, Any]) -> None:
    """ID-52: padding, left-over bits, high S."""
    operation = parse_operation(case["operation"])
    with pytest.raises(PlcError):
        find_signer(operation, case["rotationKeys"])


@pytest.mark.parametrize("case", VECTORS["over_limits"], ids=lambda case: case["comment"])
def test_own_vectors_over_a_limit_are_refused_when_new(case: dict[str, Any]) -> None:
    """ID-58, ID-59."""
    operation = parse_operation(case["operation"])
    with pytest.raises(PlcError):
        check_limits(operation)


def test_updates_replace_what_is_given_and_keep_the_rest() -> None:
    first = genesis()
    moved = make_update(
        first,
        services={"atproto_pds": PlcService("AtprotoPersonalDataServer", "https://new.example")},
        verification_methods={"atproto": RECOVERY.public_key.did_key},
    )
    old = first.to_json()
    assert moved["prev"] == first.cid
    assert "sig" not in moved
    assert moved["rotationKeys"] == old["rotationKeys"]
    assert moved["alsoKnownAs"] == old["alsoKnownAs"]
    assert moved["services"]["atproto_pds"]["endpoint"] == "https://new.example"
    second = sign_operation(moved, RECOVERY)
    assert find_signer(second, old["rotationKeys"]) == 0
    kept = make_update(second, rotation_keys=[ROTATION.public_key.did_key], also_known_as=[])
    assert kept["rotationKeys"] == [ROTATION.public_key.did_key]
    assert kept["alsoKnownAs"] == []
    assert kept["services"] == moved["services"]


def test_a_handle_update_replaces_the_first_at_alias_only() -> None:
    first = genesis()
    aliases = ["https://blog.example", "at://alice.example.com", "at://old.example.com"]
    second = sign_operation(make_update(first, also_known_as=aliases), ROTATION)
    bob = parse_handle("bob.example.com")
    changed = make_handle_update(second, bob)
    assert changed["alsoKnownAs"] == [aliases[0], "at://bob.example.com", aliases[2]]
    back = make_handle_update(second, parse_handle("old.example.com"))
    assert back["alsoKnownAs"] == [aliases[0], "at://old.example.com"]
    bare = sign_operation(make_update(first, also_known_as=[]), ROTATION)
    assert make_handle_update(bare, bob)["alsoKnownAs"] == ["at://bob.example.com"]


def test_nothing_follows_a_tombstone() -> None:
    """ID-56."""
    end = sign_operation(make_tombstone(genesis()), ROTATION)
    assert end.is_tombstone
    for make in (make_tombstone, make_update, lambda last: make_handle_update(last, ALICE)):
        with pytest.raises(PlcError):
            make(end)
    with pytest.raises(PlcError):
        did_for_genesis(end)


def test_a_genesis_operation_must_hold_its_signers_key_and_keep_the_limits() -> None:
    with pytest.raises(PlcError):
        sign_genesis(
            ROTATION,
            rotation_keys=[RECOVERY.public_key.did_key],
            signing_key=SIGNING.public_key.did_key,
            handle=ALICE,
            pds_endpoint=PDS_URL,
        )
    with pytest.raises(PlcError):
        sign_genesis(
            ROTATION,
            rotation_keys=[ROTATION.public_key.did_key] * 2,
            signing_key=SIGNING.public_key.did_key,
            handle=ALICE,
            pds_endpoint=PDS_URL,
        )


def test_an_operation_cannot_be_changed_through_its_json() -> None:
    operation = genesis()
    fields = operation.to_json()
    fields["services"]["atproto_pds"]["endpoint"] = "https://evil.example"
    fields["rotationKeys"].clear()
    assert operation.to_json() != fields
    assert operation.state is not None
    assert operation.state.services["atproto_pds"].endpoint == PDS_URL


def test_signatures_of_either_curve_are_found_and_foreign_ones_are_not() -> None:
    """ID-58: rotation keys are K-256 or P-256."""
    keys = genesis().to_json()["rotationKeys"]
    update = make_update(genesis(), also_known_as=["at://b.example.com"])
    assert find_signer(sign_operation(update, RECOVERY), keys) == 0
    assert find_signer(sign_operation(update, ROTATION), keys) == 1
    with pytest.raises(PlcError):
        find_signer(sign_operation(update, SIGNING), keys)
    ed25519 = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"
    with pytest.raises(PlcError):
        find_signer(sign_operation(update, ROTATION), [ed25519, keys[1]])


def test_verification_methods_may_be_any_did_key() -> None:
    """ID-58."""
    ed25519 = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"
    update = make_update(
        genesis(),
        verification_methods={"atproto": SIGNING.public_key.did_key, "other": ed25519},
    )
    operation = sign_operation(update, ROTATION)
    check_limits(operation)
    assert operation.state is not None
    document = render_document(Did("did:plc:" + "a" * 24), operation.state)
    assert document["verificationMethod"][1]["publicKeyMultibase"] == ed25519[8:]
    for text in ("", "did:key:", "did:key:z", "did:key:z0", "did:web:x", "did:key:z" + "1" * 300):
        assert not is_did_key(text)


def test_the_rendered_document_has_the_directorys_shape() -> None:
    operation = genesis()
    assert operation.state is not None
    did = did_for_genesis(operation)
    assert render_document(did, operation.state) == {
        "@context": [
            "https://www.w3.org/ns/did/v1",
            "https://w3id.org/security/multikey/v1",
            "https://w3id.org/security/suites/secp256k1-2019/v1",
        ],
        "id": did,
        "alsoKnownAs": ["at://alice.example.com"],
        "verificationMethod": [
            {
                "id": f"{did}#atproto",
                "type": "Multikey",
                "controller": did,
                "publicKeyMultibase": SIGNING.public_key.multibase,
            }
        ],
        "service": [
            {
                "id": "#atproto_pds",
                "type": "AtprotoPersonalDataServer",
                "serviceEndpoint": PDS_URL,
            }
        ],
    }


def test_an_operation_that_cannot_be_encoded_is_a_plc_error() -> None:
    fields = genesis().to_json()
    for value in ("\ud800", "x" * 70_000):
        with pytest.raises(PlcError):
            parse_operation({**fields, "alsoKnownAs": [value]})


def test_an_unsigned_operation_is_signed_over_everything_but_sig() -> None:
    fields = genesis().to_json()
    again = sign_operation({**fields, "sig": encode_base64url(bytes(64))}, ROTATION)
    assert again.to_json() == fields


def test_data_of_a_directory_is_read_strictly() -> None:
    operation = genesis()
    did = did_for_genesis(operation)
    assert operation.state is not None
    data = operation.state.to_json(did)
    assert parse_state(did, data) == operation.state
    for bad in (None, {**data, "did": "did:plc:other"}, {"did": did}, {**data, "services": []}):
        with pytest.raises(PlcError):
            parse_state(did, bad)
