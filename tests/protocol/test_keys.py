"""Keys: text forms, signatures, and agreement of all back ends (DM-50..DM-55, XRPC-47)."""

import base64
import json
import pickle
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.protocol.encodings import decode_base58, encode_base58
from pds.protocol.keys import (
    Curve,
    InvalidKey,
    PublicKey,
    available_backends,
    generate_secret,
    is_legacy_key_type,
    make_signer,
    parse_did_key,
    parse_legacy_key,
    parse_multikey,
    public_key,
    verify_signature,
)
from tests.support import interop_dir

VECTORS = Path(__file__).parents[1] / "vectors"

ORDER = {
    "k256": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
    "p256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
}
CURVES: tuple[Curve, ...] = ("k256", "p256")
PAIRS = [(curve, name) for curve in CURVES for name in available_backends(curve)]


def load_vectors() -> dict[str, Any]:
    vectors: dict[str, Any] = json.loads((VECTORS / "keys.json").read_text())
    return vectors


def unpadded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


def flip_s(curve: str, signature: bytes) -> bytes:
    s = ORDER[curve] - int.from_bytes(signature[32:], "big")
    return signature[:32] + s.to_bytes(32, "big")


def test_cryptography_alone_supports_both_curves() -> None:
    assert available_backends("k256")[-1] == "cryptography"
    assert available_backends("p256") == ("cryptography",)


@pytest.mark.parametrize("case", load_vectors()["keys"], ids=lambda case: case["curve"])
def test_own_vectors_of_keys_and_signatures(case: dict[str, str]) -> None:
    secret = bytes.fromhex(case["secret_hex"])
    message = case["message"].encode()
    for backend in available_backends(case["curve"]):  # type: ignore[arg-type]
        signer = make_signer(case["curve"], secret, backend=backend)  # type: ignore[arg-type]
        assert signer.public_key.did_key == case["did_key"]
        assert signer.sign(message).hex() == case["signature_hex"]
    key = parse_did_key(case["did_key"])
    assert key == parse_legacy_key(case["legacy_type"], case["legacy_compressed"])
    assert key == parse_legacy_key(case["legacy_type"], case["legacy_uncompressed"])
    assert key == parse_multikey(key.multibase)
    assert key.verify(bytes.fromhex(case["signature_hex"]), message)


@pytest.mark.parametrize("text", load_vectors()["invalid_did_keys"])
def test_invalid_did_keys_are_refused(text: str) -> None:
    with pytest.raises(InvalidKey):
        parse_did_key(text)


@settings(max_examples=15)
@given(entropy=st.binary(min_size=32, max_size=64), message=st.binary(max_size=300))
@pytest.mark.parametrize("curve", CURVES)
def test_every_backend_signs_the_same_bytes_and_gives_the_same_verdicts(
    curve: Curve, entropy: bytes, message: bytes
) -> None:
    secret = generate_secret(curve, entropy)
    signers = [make_signer(curve, secret, backend=name) for name in available_backends(curve)]
    signatures = {signer.sign(message) for signer in signers}
    keys = {signer.public_key for signer in signers}
    assert len(signatures) == len(keys) == 1
    key, signature = keys.pop(), signatures.pop()
    high = flip_s(curve, signature)
    assert int.from_bytes(signature[32:], "big") <= ORDER[curve] // 2
    for name in available_backends(curve):
        assert verify_signature(key, signature, message, backend=name)
        assert verify_signature(key, signature, message, allow_high_s=True, backend=name)
        assert not verify_signature(key, signature, message + b"x", backend=name)
        assert not verify_signature(key, high, message, backend=name)
        assert verify_signature(key, high, message, allow_high_s=True, backend=name)


def test_signatures_equal_an_independent_rfc_6979_construction() -> None:
    """RFC 6979 appendix A.2.5: P-256 and SHA-256, messages "sample" and "test", s lowered."""
    secret = bytes.fromhex("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721")
    r = "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"
    s = 0xF7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8
    signature = make_signer("p256", secret).sign(b"sample")
    assert signature == bytes.fromhex(r) + (ORDER["p256"] - s).to_bytes(32, "big")


@pytest.mark.parametrize(("curve", "backend"), PAIRS)
def test_foreign_signatures_verify_in_compact_low_s_form_only(curve: Curve, backend: str) -> None:
    openssl = ec.generate_private_key(ec.SECP256K1() if curve == "k256" else ec.SECP256R1())
    numbers = openssl.public_key().public_numbers()
    point = b"\4" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    der = openssl.sign(b"message", ec.ECDSA(hashes.SHA256()))
    key = public_key(curve, point)
    r, s = decode_dss_signature(der)
    low_s = r.to_bytes(32, "big") + min(s, ORDER[curve] - s).to_bytes(32, "big")
    assert verify_signature(key, low_s, b"message", backend=backend)
    assert not verify_signature(key, der, b"message", backend=backend)
    assert not verify_signature(key, der, b"message", allow_high_s=True, backend=backend)


@pytest.mark.parametrize(("curve", "backend"), PAIRS)
def test_malformed_signatures_are_refused_before_the_library_sees_them(
    curve: Curve, backend: str
) -> None:
    signer = make_signer(curve, generate_secret(curve, bytes(32)))
    good = signer.sign(b"m")
    order = ORDER[curve].to_bytes(32, "big")
    r, s = good[:32], good[32:]
    der = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    bad = [b"", good[:-1], good + b"\0", der, bytes(64), r + bytes(32), bytes(32) + s]
    bad += [order + s, r + order, b"\xff" * 64, flip_s(curve, good)]
    for signature in bad:
        assert not verify_signature(signer.public_key, signature, b"m", backend=backend)
    for signature in bad[:-1]:
        assert not verify_signature(
            signer.public_key, signature, b"m", allow_high_s=True, backend=backend
        )


@pytest.mark.parametrize("curve", CURVES)
def test_points_off_the_curve_or_in_other_forms_are_refused(curve: Curve) -> None:
    key = make_signer(curve, generate_secret(curve, b"k" * 32)).public_key
    x = key.compressed[1:]
    off_curve = next(
        candidate
        for at in range(256)
        if (candidate := b"\2" + x[:-1] + bytes([at])) and not is_on_curve(curve, candidate)
    )
    for point in (b"", b"\0", off_curve, b"\4" + x + x, b"\6" + x + x, x, b"\5" + x):
        with pytest.raises(InvalidKey):
            public_key(curve, point)


def is_on_curve(curve: str, point: bytes) -> bool:
    openssl = ec.SECP256K1() if curve == "k256" else ec.SECP256R1()
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(openssl, point)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("kind", ["zero", "order", "short", "long"])
def test_secrets_outside_the_scalar_range_are_refused(curve: Curve, kind: str) -> None:
    order = ORDER[curve].to_bytes(32, "big")
    secret = {"zero": bytes(32), "order": order, "short": b"\1" * 31, "long": b"\1" * 33}[kind]
    with pytest.raises(InvalidKey):
        make_signer(curve, secret)


def test_generated_secrets_are_in_range_differ_by_curve_and_need_entropy() -> None:
    entropy = sha256(b"entropy").digest()
    assert generate_secret("k256", entropy) != generate_secret("p256", entropy)
    for curve in CURVES:
        secret = generate_secret(curve, entropy)
        assert make_signer(curve, secret).secret_bytes() == secret
        assert generate_secret(curve, entropy) == secret
    with pytest.raises(InvalidKey):
        generate_secret("k256", bytes(31))


def test_an_unknown_backend_is_an_error() -> None:
    with pytest.raises(InvalidKey):
        make_signer("k256", b"\1" * 32, backend="abacus")


def test_a_signer_does_not_show_its_secret_and_a_used_key_can_be_pickled() -> None:
    signer = make_signer("k256", generate_secret("k256", b"e" * 32))
    assert signer.secret_bytes().hex() not in repr(signer)
    assert signer.public_key.verify(signer.sign(b"m"), b"m")
    assert pickle.loads(pickle.dumps(signer.public_key)) == signer.public_key


def test_jwt_algorithm_and_prefix_name_the_curve() -> None:
    k256 = make_signer("k256", b"\1" * 32).public_key
    p256 = make_signer("p256", b"\1" * 32).public_key
    assert (k256.jwt_alg, p256.jwt_alg) == ("ES256K", "ES256")
    assert k256.multibase.startswith("zQ3s")
    assert p256.multibase.startswith("zDn")


def test_legacy_types_name_the_curve_and_others_are_refused() -> None:
    assert is_legacy_key_type("EcdsaSecp256k1VerificationKey2019")
    assert not is_legacy_key_type("Multikey")
    key = make_signer("k256", b"\1" * 32).public_key
    with pytest.raises(InvalidKey):
        parse_legacy_key("Multikey", "z" + encode_base58(key.compressed))
    with pytest.raises(InvalidKey):
        parse_legacy_key("EcdsaSecp256k1VerificationKey2019", key.multibase)


def test_interop_signature_fixtures() -> None:
    for case in json.loads((interop_dir() / "crypto/signature-fixtures.json").read_text()):
        key = parse_did_key(case["publicKeyDid"])
        assert key == parse_legacy_key(case["didDocSuite"], case["publicKeyMultibase"])
        assert key.jwt_alg == case["algorithm"]
        signature, message = unpadded(case["signatureBase64"]), unpadded(case["messageBase64"])
        for backend in available_backends(key.curve):
            verdict = verify_signature(key, signature, message, backend=backend)
            assert verdict is case["validSignature"], (case["comment"], backend)


def test_interop_did_key_fixtures() -> None:
    for case in json.loads((interop_dir() / "crypto/w3c_didkey_K256.json").read_text()):
        signer = make_signer("k256", bytes.fromhex(case["privateKeyBytesHex"]))
        assert signer.public_key.did_key == case["publicDidKey"]
    for case in json.loads((interop_dir() / "crypto/w3c_didkey_P256.json").read_text()):
        signer = make_signer("p256", decode_base58(case["privateKeyBytesBase58"]))
        assert signer.public_key.did_key == case["publicDidKey"]


def test_equal_keys_are_equal_whatever_was_loaded() -> None:
    key = make_signer("p256", b"\2" * 32).public_key
    other = PublicKey(key.curve, key.compressed)
    assert not other.verify(bytes(64), b"")
    assert key == other
    assert hash(key) == hash(other)
