"""Signing keys on the curves K-256 (secp256k1) and P-256 (secp256r1), and their text forms.

A signature is always ECDSA over SHA-256, written as 64 bytes `r || s`, with `s` in the lower half
of the group order, and made with the deterministic nonce of RFC 6979: the same key and message give
the same bytes with every back end, so tests may compare them (validity is never decided that way).

Back ends: P-256 is done by `cryptography`. K-256 is done by libsecp256k1 when one of its bindings
is installed (ten times faster), otherwise by `cryptography` too. What is accepted does not depend
on the back end: lengths, ranges and low-S are checked here before any library sees a signature.

Text forms: `did:key:z...` and the multikey `z...` hold a multicodec prefix and the compressed
point; the legacy verification types of DID documents hold the bare point and name the curve by
their type. Only the first two are ever written.
"""

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, Protocol

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pds.errors import ProtocolError
from pds.protocol.encodings import InvalidEncoding, decode_base58, encode_base58

Curve = Literal["k256", "p256"]

SIGNATURE_BYTES: Final = 64
SECRET_BYTES: Final = 32
COMPRESSED_BYTES: Final = 33
_UNCOMPRESSED_BYTES: Final = 65

_ORDER: Final[dict[Curve, int]] = {
    "k256": 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141,
    "p256": 0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551,
}
_MULTICODEC: Final[dict[Curve, bytes]] = {"k256": b"\xe7\x01", "p256": b"\x80\x24"}
_LEGACY_CURVE: Final[dict[str, Curve]] = {
    "EcdsaSecp256k1VerificationKey2019": "k256",
    "EcdsaSecp256r1VerificationKey2019": "p256",
}
_JWT_ALG: Final[dict[Curve, str]] = {"k256": "ES256K", "p256": "ES256"}

SignDigest = Callable[[bytes], bytes]
"""SHA-256 digest -> 64-byte low-S signature."""
VerifyDigest = Callable[[bytes, bytes], bool]
"""(64-byte low-S signature with r and s in range, SHA-256 digest) -> verdict."""


def _import_or_none(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:  # accelerators are optional
        return None


btclib_dsa: Final[Any] = _import_or_none("btclib_secp256k1.dsa")
btclib_keys: Final[Any] = _import_or_none("btclib_secp256k1.keys")
coincurve: Final[Any] = _import_or_none("coincurve")


class InvalidKey(ProtocolError):
    """A key that is not a point (or scalar) of a supported curve, or badly written."""


class Signer(Protocol):
    """A private key that signs messages. The key itself stays inside."""

    @property
    def public_key(self) -> "PublicKey":
        """The public half."""

    def sign(self, message: bytes) -> bytes:
        """Sign SHA-256 of `message`: 64 bytes, low-S, the same bytes every time (DM-51)."""

    def secret_bytes(self) -> bytes:
        """The 32-byte scalar; for the keystore only."""


@dataclass(frozen=True)
class PublicKey:
    """A public key: the curve and the compressed point, which is known to lie on the curve.

    Make one with `parse_did_key`, `parse_multikey`, `parse_legacy_key` or `public_key`.
    """

    curve: Curve
    compressed: bytes

    def verify(self, signature: bytes, message: bytes, *, allow_high_s: bool = False) -> bool:
        """Return whether `signature` is this key's over SHA-256 of `message`.

        Anything but 64 bytes (DER among them) and, unless `allow_high_s`, an `s` in the upper half
        of the group order is refused. Only JWTs may be high-S (XRPC-47); repos and PLC operations
        never (DM-51, DM-55). One message has many valid signatures, so they are never compared
        (DM-54).
        """
        return _verify(self.curve, self._verify_digest, signature, message, allow_high_s)

    @cached_property
    def _verify_digest(self) -> VerifyDigest:
        return _backend(self.curve, None).load_public(self.curve, self.compressed)

    def __reduce__(self) -> tuple[type["PublicKey"], tuple[Curve, bytes]]:
        return PublicKey, (self.curve, self.compressed)  # without the loaded library object

    @property
    def multibase(self) -> str:
        """The multikey form, `z...`, as DID documents hold it (DM-52)."""
        return "z" + encode_base58(_MULTICODEC[self.curve] + self.compressed)

    @property
    def did_key(self) -> str:
        """The `did:key:z...` form (DM-52)."""
        return "did:key:" + self.multibase

    @property
    def jwt_alg(self) -> str:
        """The JOSE algorithm name of this curve, ES256K or ES256 (XRPC-40)."""
        return _JWT_ALG[self.curve]


def public_key(curve: Curve, point: bytes) -> PublicKey:
    """Check a compressed or uncompressed point and return it as a key.

    Raises: InvalidKey if it is not a point of `curve`.
    """
    is_compressed = len(point) == COMPRESSED_BYTES and point[0] in (2, 3)
    is_uncompressed = len(point) == _UNCOMPRESSED_BYTES and point[0] == 4
    if not is_compressed and not is_uncompressed:
        raise InvalidKey("a public key is a point of 33 or 65 bytes")
    try:
        return PublicKey(curve, _backend(curve, None).compress(curve, point))
    except ValueError as error:
        raise InvalidKey("not a point of the curve") from error


def parse_multikey(text: str) -> PublicKey:
    """Parse the `z...` form: multicodec prefix and compressed point in base58btc (DM-52).

    Raises: InvalidKey.
    """
    content = _decode_multibase(text)
    for curve, prefix in _MULTICODEC.items():
        if content.startswith(prefix):
            if len(content) != len(prefix) + COMPRESSED_BYTES:
                raise InvalidKey("a multikey holds a compressed point")
            return public_key(curve, content[len(prefix) :])
    raise InvalidKey("key type is neither K-256 nor P-256")


def parse_did_key(text: str) -> PublicKey:
    """Parse `did:key:z...` (DM-52).

    Raises: InvalidKey.
    """
    if not text.startswith("did:key:"):
        raise InvalidKey("not a did:key")
    return parse_multikey(text.removeprefix("did:key:"))


def is_legacy_key_type(key_type: str) -> bool:
    """Return whether a verification method's type is one of the two legacy ones (DM-53)."""
    return key_type in _LEGACY_CURVE


def parse_legacy_key(key_type: str, multibase: str) -> PublicKey:
    """Parse a key of the two legacy verification types: a bare point, the curve named by the type.

    Raises: InvalidKey. Read only: we never write this form (DM-53).
    """
    curve = _LEGACY_CURVE.get(key_type)
    if curve is None:
        raise InvalidKey("not a legacy key type")
    return public_key(curve, _decode_multibase(multibase))


def available_backends(curve: Curve) -> tuple[str, ...]:
    """Return the names of the usable back ends for `curve`, the preferred one first."""
    return tuple(backend.name for backend in _BACKENDS[curve])


def make_signer(curve: Curve, secret: bytes, *, backend: str | None = None) -> Signer:
    """Return a signer for a 32-byte secret scalar, with the preferred or the named back end.

    Raises: InvalidKey if the secret is not a scalar between 1 and the group order.
    """
    if len(secret) != SECRET_BYTES or not 0 < int.from_bytes(secret, "big") < _ORDER[curve]:
        raise InvalidKey("a secret key is a 32-byte number below the group order")
    return _KeySigner(curve, bytes(secret), _backend(curve, backend))


def generate_secret(curve: Curve, entropy: bytes) -> bytes:
    """Turn at least 32 random bytes into a secret scalar for `curve`.

    512 hash bits are reduced to the scalar range, so no scalar is noticeably more likely.

    Raises: InvalidKey if there is too little entropy.
    """
    if len(entropy) < SECRET_BYTES:
        raise InvalidKey("a secret key needs at least 32 random bytes")
    wide = hashlib.sha512(b"signing key " + curve.encode() + entropy).digest()
    scalar = int.from_bytes(wide, "big") % (_ORDER[curve] - 1) + 1
    return scalar.to_bytes(SECRET_BYTES, "big")


def verify_signature(
    key: PublicKey,
    signature: bytes,
    message: bytes,
    *,
    allow_high_s: bool = False,
    backend: str | None = None,
) -> bool:
    """Verify as `PublicKey.verify` does, with a named back end."""
    verify_digest = _backend(key.curve, backend).load_public(key.curve, key.compressed)
    return _verify(key.curve, verify_digest, signature, message, allow_high_s)


def _verify(
    curve: Curve, verify_digest: VerifyDigest, signature: bytes, message: bytes, allow_high_s: bool
) -> bool:
    if len(signature) != SIGNATURE_BYTES:
        return False
    order = _ORDER[curve]
    r = int.from_bytes(signature[:32], "big")
    s = int.from_bytes(signature[32:], "big")
    if not 0 < r < order or not 0 < s < order:
        return False
    if s > order // 2:
        if not allow_high_s:
            return False
        signature = signature[:32] + (order - s).to_bytes(32, "big")
    return verify_digest(bytes(signature), hashlib.sha256(message).digest())


def _decode_multibase(text: str) -> bytes:
    if not text.startswith("z"):
        raise InvalidKey("a key is written in base58btc with the prefix z")
    try:
        return decode_base58(text[1:])
    except InvalidEncoding as error:
        raise InvalidKey("a key is written in base58btc") from error


class _KeySigner:
    """The one `Signer`: everything that differs between libraries is in its back end."""

    __slots__ = ("_secret", "_sign_digest", "public_key")

    def __init__(self, curve: Curve, secret: bytes, backend: "_Backend") -> None:
        compressed, self._sign_digest = backend.load_secret(curve, secret)
        self._secret = secret
        self.public_key = PublicKey(curve, compressed)

    def __repr__(self) -> str:
        return f"<Signer {self.public_key.did_key}>"

    def sign(self, message: bytes) -> bytes:
        """Sign SHA-256 of `message` (see `Signer.sign`)."""
        return self._sign_digest(hashlib.sha256(message).digest())

    def secret_bytes(self) -> bytes:
        """The 32-byte scalar; for the keystore only."""
        return self._secret


class _Backend(Protocol):
    """One cryptography library. Points and scalars reaching it have the right lengths."""

    name: str

    def compress(self, curve: Curve, point: bytes) -> bytes:
        """Return the compressed form of a point; ValueError if it is not on the curve."""

    def load_public(self, curve: Curve, compressed: bytes) -> VerifyDigest:
        """Prepare verification."""

    def load_secret(self, curve: Curve, secret: bytes) -> tuple[bytes, SignDigest]:
        """Return the compressed public point, and prepare signing."""


class _Cryptography:
    """OpenSSL through `cryptography`: both curves; slow on K-256 (measured 262 us to sign)."""

    name = "cryptography"

    def compress(self, curve: Curve, point: bytes) -> bytes:
        key = ec.EllipticCurvePublicKey.from_encoded_point(_openssl_curve(curve), point)
        return key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)

    def load_public(self, curve: Curve, compressed: bytes) -> VerifyDigest:
        key = ec.EllipticCurvePublicKey.from_encoded_point(_openssl_curve(curve), compressed)
        algorithm = ec.ECDSA(Prehashed(hashes.SHA256()))

        def verify_digest(signature: bytes, digest: bytes) -> bool:
            try:
                key.verify(_to_der(signature), digest, algorithm)
            except InvalidSignature:
                return False
            return True

        return verify_digest

    def load_secret(self, curve: Curve, secret: bytes) -> tuple[bytes, SignDigest]:
        key = ec.derive_private_key(int.from_bytes(secret, "big"), _openssl_curve(curve))
        algorithm = ec.ECDSA(Prehashed(hashes.SHA256()), deterministic_signing=True)
        order = _ORDER[curve]

        def sign_digest(digest: bytes) -> bytes:
            r, s = decode_dss_signature(key.sign(digest, algorithm))
            return r.to_bytes(32, "big") + min(s, order - s).to_bytes(32, "big")

        point = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        return point, sign_digest


class _Btclib:
    """libsecp256k1 through btclib-secp256k1; K-256 only."""

    name = "btclib-secp256k1"

    def compress(self, _curve: Curve, point: bytes) -> bytes:
        return bytes(btclib_keys.reserialize(point, compressed=True))

    def load_public(self, _curve: Curve, compressed: bytes) -> VerifyDigest:
        def verify_digest(signature: bytes, digest: bytes) -> bool:
            return bool(btclib_dsa.verify(digest, compressed, signature, compact=True))

        return verify_digest

    def load_secret(self, _curve: Curve, secret: bytes) -> tuple[bytes, SignDigest]:
        def sign_digest(digest: bytes) -> bytes:
            # The library's own check of each signature (verify=True) would triple the cost.
            return bytes(btclib_dsa.sign(digest, secret, compact=True, verify=False))

        return bytes(btclib_keys.pubkey_from_prvkey(secret, compressed=True)), sign_digest


class _Coincurve:
    """libsecp256k1 through coincurve; K-256 only."""

    name = "coincurve"

    def compress(self, _curve: Curve, point: bytes) -> bytes:
        return bytes(coincurve.PublicKey(point).format(compressed=True))

    def load_public(self, _curve: Curve, compressed: bytes) -> VerifyDigest:
        key = coincurve.PublicKey(compressed)

        def verify_digest(signature: bytes, digest: bytes) -> bool:
            return bool(key.verify(_to_der(signature), digest, hasher=None))

        return verify_digest

    def load_secret(self, _curve: Curve, secret: bytes) -> tuple[bytes, SignDigest]:
        key = coincurve.PrivateKey(secret)

        def sign_digest(digest: bytes) -> bytes:
            # A recoverable signature starts with the plain r || s: no detour over DER.
            return bytes(key.sign_recoverable(digest, hasher=None)[:SIGNATURE_BYTES])

        return bytes(key.public_key.format(compressed=True)), sign_digest


def _openssl_curve(curve: Curve) -> ec.EllipticCurve:
    return ec.SECP256K1() if curve == "k256" else ec.SECP256R1()


def _to_der(signature: bytes) -> bytes:
    return encode_dss_signature(
        int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    )


def _k256_backends() -> tuple[_Backend, ...]:
    found: list[_Backend] = []
    if btclib_dsa is not None:
        found.append(_Btclib())
    if coincurve is not None:
        found.append(_Coincurve())
    return (*found, _Cryptography())


_BACKENDS: Final[dict[Curve, tuple[_Backend, ...]]] = {
    "k256": _k256_backends(),
    "p256": (_Cryptography(),),
}


def _backend(curve: Curve, name: str | None) -> _Backend:
    for backend in _BACKENDS[curve]:
        if name is None or backend.name == name:
            return backend
    raise InvalidKey(f"no such back end for {curve}: {name}")


class Cipher(Protocol):
    """Authenticated encryption under one key (RFC 8439)."""

    def seal(self, nonce: bytes, content: bytes) -> bytes:
        """Return `content` encrypted; a 12-byte nonce must never be used twice."""

    def unseal(self, nonce: bytes, sealed: bytes) -> bytes | None:
        """Return the content, or None when these are not the bytes that were sealed."""


def make_cipher(key: bytes) -> Cipher:
    """Return ChaCha20-Poly1305 under a key of 32 bytes."""
    return _ChaCha(ChaCha20Poly1305(key))


class _ChaCha:
    def __init__(self, cipher: ChaCha20Poly1305) -> None:
        self._cipher = cipher

    def seal(self, nonce: bytes, content: bytes) -> bytes:
        return self._cipher.encrypt(nonce, content, None)

    def unseal(self, nonce: bytes, sealed: bytes) -> bytes | None:
        try:
            return self._cipher.decrypt(nonce, sealed, None)
        except InvalidTag:
            return None
