"""did:plc operations: their forms, signatures, hashes, limits, and the document they add up to.

A did:plc identity is a chain of signed operations. The first one (genesis) is signed by one of its
own rotation keys, and its hash is the DID. Each later one names the CID of the operation before it
and is signed by one of *that* operation's rotation keys. An operation states the whole new state,
not a change. A tombstone ends the identity. The rules about chains, forks and times are in
`plc_log`.

Operations are kept as the JSON objects that the directory exchanges, because those are what is
hashed: `parse_operation` checks one strictly (no missing, unknown or ill-typed field). CIDs inside
operations are strings.

Limits: what the specification says and what the deployed directory does differ; `check_limits`
demands both (ID-59). Old operations in logs are held to the structure only.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from pds.errors import ProtocolError
from pds.protocol.cbor import CborError, encode
from pds.protocol.cid import Cid, InvalidCid, parse_cid
from pds.protocol.encodings import (
    InvalidEncoding,
    decode_base58,
    decode_base64url,
    encode_base64url,
)
from pds.protocol.keys import InvalidKey, PublicKey, Signer, parse_did_key
from pds.protocol.syntax import Did, Handle

MAX_OPERATION_BYTES: Final = 4_000
"""CBOR size; the deployed directory's limit, below the 7,500 of the specification."""
MAX_ROTATION_KEYS: Final = 5
"""The specification's limit, below the directory's 10; at least one, no duplicates."""
MAX_VERIFICATION_METHODS: Final = 10
MAX_ALSO_KNOWN_AS: Final = 10
MAX_ALIAS_BYTES: Final = 258
MAX_SERVICES: Final = 10
MAX_NAME_BYTES: Final = 32
MAX_SERVICE_TYPE_BYTES: Final = 256
MAX_ENDPOINT_BYTES: Final = 512
MAX_KEY_BYTES: Final = 256
MAX_ANY_OPERATION_BYTES: Final = 64_000
"""Largest operation of a log that is looked at at all."""

PDS_SERVICE_ID: Final = "atproto_pds"
PDS_SERVICE_TYPE: Final = "AtprotoPersonalDataServer"
SIGNING_KEY_ID: Final = "atproto"

_PLC: Final = "plc_operation"
_TOMBSTONE: Final = "plc_tombstone"
_CREATE: Final = "create"
_ENDS: Final = frozenset({"type", "prev", "sig"})
_FIELDS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        _PLC: _ENDS | {"rotationKeys", "verificationMethods", "alsoKnownAs", "services"},
        _TOMBSTONE: _ENDS,
        _CREATE: _ENDS | {"signingKey", "recoveryKey", "handle", "service"},
    }
)
_CONTEXTS: Final = (
    "https://www.w3.org/ns/did/v1",
    "https://w3id.org/security/multikey/v1",
)
_CURVE_CONTEXTS: Final = {
    "p256": "https://w3id.org/security/suites/ecdsa-2019/v1",
    "k256": "https://w3id.org/security/suites/secp256k1-2019/v1",
}

OperationJson: TypeAlias = dict[str, Any]
"""An operation as the directory sends and takes it."""


class PlcError(ProtocolError):
    """An operation or log that breaks a rule of did:plc."""


@dataclass(frozen=True, slots=True)
class PlcService:
    """A service of the identity: its type and its endpoint URL."""

    type: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class PlcState:
    """What an operation states: the whole identity. Rotation keys in order of authority."""

    rotation_keys: tuple[str, ...]
    verification_methods: Mapping[str, str]
    also_known_as: tuple[str, ...]
    services: Mapping[str, PlcService]

    def to_json(self, did: Did) -> dict[str, Any]:
        """The form in which the directory serves it at `/:did/data`."""
        return {"did": did, **_state_fields(self)}


@dataclass(frozen=True, slots=True)
class PlcOperation:
    """A signed operation of any kind whose structure was checked.

    `state` is what it states (None for a tombstone), legacy operations converted (ID-54).
    `cid` and `unsigned_bytes` are over the form in which it was written.
    """

    type: str
    prev: str | None
    sig: str
    state: PlcState | None
    cid: str
    unsigned_bytes: bytes
    signed_bytes: bytes
    _fields: OperationJson

    @property
    def is_tombstone(self) -> bool:
        """Whether this operation ends the identity."""
        return self.state is None

    def to_json(self) -> OperationJson:
        """A fresh copy of the operation as it was written."""
        return _copy(self._fields)


def parse_operation(content: object) -> PlcOperation:
    """Check the structure of a signed operation of any of the three kinds.

    Signature and limits are not judged here. Raises: PlcError.
    Spec: (ID-51, ID-53, ID-54)
    """
    if not isinstance(content, dict):
        raise PlcError("operation is not an object")
    kind = content.get("type")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise PlcError("operation has an unknown type")
    if content.keys() != _FIELDS[kind]:
        raise PlcError("operation has missing or unknown fields")
    sig, prev = content["sig"], content["prev"]
    if not isinstance(sig, str):
        raise PlcError("operation sig is not a string")
    _check_prev(prev, kind)
    state = _STATES[kind](content)
    signed_bytes = _encode(content)
    return PlcOperation(
        type=kind,
        prev=prev,
        sig=sig,
        state=state,
        cid=str(Cid.of_data(signed_bytes)),
        unsigned_bytes=_encode({name: value for name, value in content.items() if name != "sig"}),
        signed_bytes=signed_bytes,
        _fields=_copy(content),
    )


def parse_state(did: Did, content: object) -> PlcState:
    """Read what a directory serves at `/:did/data`. Raises: PlcError."""
    if not isinstance(content, dict) or content.get("did") != did:
        raise PlcError("not the data of this identity")
    if not content.keys() >= _FIELDS[_PLC] - _ENDS:
        raise PlcError("data lacks a field")
    return _plc_state(content)


def sign_operation(fields: OperationJson, signer: Signer) -> PlcOperation:
    """Sign an unsigned operation (an object without `sig`) with a rotation key.

    The signature is over the canonical CBOR, low-S, base64url without padding.
    Raises: PlcError if the object is not a well-formed operation. Spec: (ID-52)
    """
    unsigned = {name: value for name, value in fields.items() if name != "sig"}
    sig = encode_base64url(signer.sign(_encode(unsigned)))
    return parse_operation({**unsigned, "sig": sig})


def sign_genesis(
    signer: Signer,
    *,
    rotation_keys: Sequence[str],
    signing_key: str,
    handle: Handle,
    pds_endpoint: str,
) -> PlcOperation:
    """Make the first operation of a new account's identity (ID-50, ID-65).

    `rotation_keys` in order of authority must hold the signer's key. The DID is
    `did_for_genesis` of the result. Raises: PlcError if the result breaks a limit.
    """
    state = PlcState(
        rotation_keys=tuple(rotation_keys),
        verification_methods={SIGNING_KEY_ID: signing_key},
        also_known_as=(f"at://{handle}",),
        services={PDS_SERVICE_ID: PlcService(PDS_SERVICE_TYPE, pds_endpoint)},
    )
    if signer.public_key.did_key not in state.rotation_keys:
        raise PlcError("a genesis operation is signed by one of its own rotation keys")
    operation = sign_operation(operation_fields(state, prev=None), signer)
    check_limits(operation)
    return operation


def operation_fields(state: PlcState, *, prev: str | None) -> OperationJson:
    """Return the unsigned operation that states `state` after the operation `prev`."""
    return {"type": _PLC, **_state_fields(state), "prev": prev}


def make_update(
    last: PlcOperation,
    *,
    rotation_keys: Sequence[str] | None = None,
    verification_methods: Mapping[str, str] | None = None,
    also_known_as: Sequence[str] | None = None,
    services: Mapping[str, PlcService] | None = None,
) -> OperationJson:
    """Return the unsigned operation that follows `last`: given parts replaced, others kept.

    Raises: PlcError if `last` is a tombstone. Spec: (ID-56, ID-68)
    """
    old = last.state
    if old is None:
        raise PlcError("the identity was ended by a tombstone")
    keep = rotation_keys is None
    state = PlcState(
        rotation_keys=old.rotation_keys if keep else tuple(rotation_keys or ()),
        verification_methods=(
            old.verification_methods if verification_methods is None else verification_methods
        ),
        also_known_as=old.also_known_as if also_known_as is None else tuple(also_known_as),
        services=old.services if services is None else services,
    )
    return operation_fields(state, prev=last.cid)


def make_handle_update(last: PlcOperation, handle: Handle) -> OperationJson:
    """Return the unsigned operation that replaces the first `at://` alias (ID-25)."""
    aliases = () if last.state is None else last.state.also_known_as
    at = next((at for at, alias in enumerate(aliases) if alias.startswith("at://")), len(aliases))
    changed = [*aliases[:at], f"at://{handle}", *aliases[at + 1 :]]
    return make_update(last, also_known_as=list(dict.fromkeys(changed)))


def make_tombstone(last: PlcOperation) -> OperationJson:
    """Return the unsigned operation that ends the identity after `last`."""
    if last.is_tombstone:
        raise PlcError("the identity was ended by a tombstone")
    return {"type": _TOMBSTONE, "prev": last.cid}


def did_for_genesis(operation: PlcOperation) -> Did:
    """Return the DID that a genesis operation makes: a hash of its signed bytes (ID-50)."""
    if operation.prev is not None or operation.is_tombstone:
        raise PlcError("not a genesis operation")
    digest = hashlib.sha256(operation.signed_bytes).digest()
    return Did("did:plc:" + base64.b32encode(digest).decode("ascii").lower()[:24])


def op_cid(operation: PlcOperation) -> str:
    """Return the CID of a signed operation as the string that `prev` holds (ID-53)."""
    return operation.cid


def find_signer(operation: PlcOperation, rotation_keys: Sequence[str]) -> int:
    """Return the index of the first of `rotation_keys` that signed `operation`.

    Padding, left-over bits, high-S and DER are refused (ID-52). Rotation keys must be K-256 or
    P-256 (ID-58). Raises: PlcError if none of them signed it.
    """
    try:
        signature = decode_base64url(operation.sig)
    except InvalidEncoding as error:
        raise PlcError("operation sig is not canonical base64url") from error
    for index, text in enumerate(rotation_keys):
        if _parse_rotation_key(text).verify(signature, operation.unsigned_bytes):
            return index
    raise PlcError("operation is not signed by an allowed rotation key")


def check_limits(operation: PlcOperation) -> None:
    """Check what a new operation must satisfy beyond its structure.

    Raises: PlcError naming the limit; also for legacy operations, which are read only.
    Spec: (ID-58, ID-59)
    """
    if len(operation.signed_bytes) > MAX_OPERATION_BYTES:
        raise PlcError(f"operation is larger than {MAX_OPERATION_BYTES} bytes")
    state = operation.state
    if state is None:
        return
    if operation.type != _PLC:
        raise PlcError("legacy operations are no longer accepted")
    _check_rotation_keys(state.rotation_keys)
    methods, services = state.verification_methods, state.services
    _limit(len(methods) <= MAX_VERIFICATION_METHODS, "too many verificationMethods")
    for name, key in methods.items():
        _limit(_fits(name, MAX_NAME_BYTES), "name of a verification method is too long or empty")
        _limit(_fits(key, MAX_KEY_BYTES) and is_did_key(key), f"key of {name} is not a did:key")
    aliases = state.also_known_as
    _limit(len(aliases) <= MAX_ALSO_KNOWN_AS, "too many alsoKnownAs")
    _limit(len(set(aliases)) == len(aliases), "duplicate alsoKnownAs")
    _limit(all(_fits(alias, MAX_ALIAS_BYTES) for alias in aliases), "alias is too long or empty")
    _limit(len(services) <= MAX_SERVICES, "too many services")
    for name, service in services.items():
        _limit(_fits(name, MAX_NAME_BYTES), "name of a service is too long or empty")
        _limit(_fits(service.type, MAX_SERVICE_TYPE_BYTES), f"type of {name} is too long or empty")
        _limit(_fits(service.endpoint, MAX_ENDPOINT_BYTES), f"endpoint of {name} is too long")


def is_did_key(text: str) -> bool:
    """Return whether `text` is a well-formed did:key of any kind of key (ID-58)."""
    if not text.startswith("did:key:z") or len(text) > MAX_KEY_BYTES:
        return False
    try:
        return len(decode_base58(text.removeprefix("did:key:z"))) > 2
    except InvalidEncoding:
        return False


def render_document(did: Did, state: PlcState) -> dict[str, Any]:
    """Render the DID document that the directory serves for `state`.

    Key ids are absolute, service ids relative, as the directory does it.
    """
    contexts = list(_CONTEXTS)
    methods = []
    for name, did_key in state.verification_methods.items():
        context = _curve_context(did_key)
        if context is not None and context not in contexts:
            contexts.append(context)
        methods.append(
            {
                "id": f"{did}#{name}",
                "type": "Multikey",
                "controller": did,
                "publicKeyMultibase": did_key.removeprefix("did:key:"),
            }
        )
    return {
        "@context": contexts,
        "id": did,
        "alsoKnownAs": list(state.also_known_as),
        "verificationMethod": methods,
        "service": [
            {"id": f"#{name}", "type": service.type, "serviceEndpoint": service.endpoint}
            for name, service in state.services.items()
        ],
    }


def _plc_state(content: OperationJson) -> PlcState:
    services = _text_keyed(content["services"], "services")
    return PlcState(
        rotation_keys=_texts(content["rotationKeys"], "rotationKeys"),
        verification_methods=MappingProxyType(
            {
                name: _text(key, "verificationMethods")
                for name, key in _text_keyed(
                    content["verificationMethods"], "verificationMethods"
                ).items()
            }
        ),
        also_known_as=_texts(content["alsoKnownAs"], "alsoKnownAs"),
        services=MappingProxyType({name: _service(entry) for name, entry in services.items()}),
    )


def _tombstone_state(_content: OperationJson) -> None:
    return None


def _create_state(content: OperationJson) -> PlcState:
    """Convert the legacy genesis form to what it states today (ID-54)."""
    signing_key = _text(content["signingKey"], "signingKey")
    recovery_key = _text(content["recoveryKey"], "recoveryKey")
    handle = _text(content["handle"], "handle")
    endpoint = _text(content["service"], "service")
    if not endpoint.startswith(("http://", "https://")):
        endpoint = "https://" + endpoint
    if not handle.startswith("at://"):
        handle = "at://" + handle.removeprefix("https://").removeprefix("http://")
    return PlcState(
        rotation_keys=(recovery_key, signing_key),
        verification_methods=MappingProxyType({SIGNING_KEY_ID: signing_key}),
        also_known_as=(handle,),
        services=MappingProxyType({PDS_SERVICE_ID: PlcService(PDS_SERVICE_TYPE, endpoint)}),
    )


_STATES: Final = MappingProxyType(
    {_PLC: _plc_state, _TOMBSTONE: _tombstone_state, _CREATE: _create_state}
)


def _check_prev(prev: object, kind: str) -> None:
    if prev is None:
        if kind == _TOMBSTONE:
            raise PlcError("a tombstone has a prev")
        return
    if kind == _CREATE or not isinstance(prev, str):
        raise PlcError("operation prev is wrong")
    try:
        cid = parse_cid(prev)
    except InvalidCid as error:
        raise PlcError("operation prev is not a CID") from error
    if not cid.is_blessed_data:
        raise PlcError("operation prev is not a sha-256 CID of dag-cbor data")


def _state_fields(state: PlcState) -> OperationJson:
    return {
        "rotationKeys": list(state.rotation_keys),
        "verificationMethods": dict(state.verification_methods),
        "alsoKnownAs": list(state.also_known_as),
        "services": {
            name: {"type": service.type, "endpoint": service.endpoint}
            for name, service in state.services.items()
        },
    }


def _service(entry: object) -> PlcService:
    if not isinstance(entry, dict) or entry.keys() != {"type", "endpoint"}:
        raise PlcError("a service has a type and an endpoint")
    return PlcService(_text(entry["type"], "service"), _text(entry["endpoint"], "service"))


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise PlcError(f"{where} holds something that is not a string")
    return value


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise PlcError(f"{where} is not a list")
    return tuple(_text(entry, where) for entry in value)


def _text_keyed(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlcError(f"{where} is not an object")
    return value


def _encode(fields: OperationJson) -> bytes:
    try:
        content = encode(fields)
    except CborError as error:
        raise PlcError("operation cannot be encoded") from error
    if len(content) > MAX_ANY_OPERATION_BYTES:
        raise PlcError("operation is far too large")
    return content


def _copy(value: OperationJson) -> OperationJson:
    return {
        name: _copy(part)
        if isinstance(part, dict)
        else list(part)
        if isinstance(part, list)
        else part
        for name, part in value.items()
    }


def _parse_rotation_key(text: str) -> PublicKey:
    try:
        return parse_did_key(text)
    except InvalidKey as error:
        raise PlcError("rotation key is neither K-256 nor P-256") from error


def _check_rotation_keys(rotation_keys: tuple[str, ...]) -> None:
    _limit(0 < len(rotation_keys) <= MAX_ROTATION_KEYS, "an identity has 1 to 5 rotation keys")
    keys = {_parse_rotation_key(text) for text in rotation_keys}
    _limit(len(keys) == len(rotation_keys), "duplicate rotation keys")


def _curve_context(did_key: str) -> str | None:
    try:
        return _CURVE_CONTEXTS[parse_did_key(did_key).curve]
    except InvalidKey:
        return None


def _fits(text: str, limit: int) -> bool:
    return 0 < len(text.encode("utf-8", "surrogatepass")) <= limit


def _limit(is_kept: bool, message: str) -> None:
    if not is_kept:
        raise PlcError(message)
