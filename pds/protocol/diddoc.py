"""DID documents: what a stranger's document says about an account, and our own service's document.

Reading is tolerant where the specification is: ids may be relative (`#atproto`) or absolute
(`did:...#atproto`), unknown and malformed entries are ignored, and of several candidates the first
counts. It is strict about what decides: the document's `id` must be the DID that was asked for.

A handle found here is only a claim: it is trusted when the handle resolves to the same DID (ID-1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from pds.errors import ProtocolError
from pds.protocol.keys import (
    InvalidKey,
    PublicKey,
    is_legacy_key_type,
    parse_legacy_key,
    parse_multikey,
)
from pds.protocol.syntax import Did, Handle, InvalidSyntax, parse_handle

SIGNING_KEY_ID: Final = "atproto"
PDS_SERVICE_ID: Final = "atproto_pds"
PDS_SERVICE_TYPE: Final = "AtprotoPersonalDataServer"
INVALID_HANDLE: Final = Handle("handle.invalid")
"""Shown in place of a handle that does not resolve both ways (ID-2, ID-4)."""

_MAX_ENTRIES: Final = 200
"""Entries of one list that are looked at; real documents have a handful."""
_MULTIKEY_CONTEXTS: Final = (
    "https://www.w3.org/ns/did/v1",
    "https://w3id.org/security/multikey/v1",
)


class InvalidDidDocument(ProtocolError):
    """Not a DID document, or the document of another DID."""


@dataclass(frozen=True, slots=True)
class Service:
    """One service entry: the bare id (without DID and `#`), its type and its endpoint."""

    id: str
    type: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class VerificationMethod:
    """One key entry: the bare id, its type and the key in multibase."""

    id: str
    type: str
    multibase: str


@dataclass(frozen=True, slots=True)
class DidDocument:
    """A document whose `id` was checked. `source` is the JSON as it was received."""

    did: Did
    also_known_as: tuple[str, ...]
    verification_methods: tuple[VerificationMethod, ...]
    services: tuple[Service, ...]
    source: Mapping[str, Any] = field(compare=False, repr=False)

    @property
    def handle(self) -> Handle | None:
        """The claimed handle: the first syntactically valid `at://` alias (ID-1)."""
        for alias in self.also_known_as:
            if alias.startswith("at://"):
                try:
                    return parse_handle(alias.removeprefix("at://"))
                except InvalidSyntax:
                    continue
        return None

    @property
    def signing_key(self) -> PublicKey | None:
        """The account's signing key: the entry `#atproto` (ID-31)."""
        return self.key(SIGNING_KEY_ID)

    @property
    def pds_endpoint(self) -> str | None:
        """The URL of the account's PDS, without a trailing slash, if it is usable (ID-32)."""
        service = self.service(PDS_SERVICE_ID)
        if service is None or service.type != PDS_SERVICE_TYPE:
            return None
        return parse_origin(service.endpoint)

    def service(self, service_id: str) -> Service | None:
        """Return the first service with this id (`atproto_pds` or `#atproto_pds`) (ID-32)."""
        wanted = service_id.removeprefix("#")
        return next((entry for entry in self.services if entry.id == wanted), None)

    def key(self, key_id: str) -> PublicKey | None:
        """Return the key of the first entry with this id, or None if unusable (ID-31, DM-53)."""
        wanted = key_id.removeprefix("#")
        for method in self.verification_methods:
            if method.id == wanted:
                return _parse_method_key(method)
        return None


def parse_did_document(content: object, did: Did) -> DidDocument:
    """Read the JSON of the document that `did` resolved to.

    Raises: InvalidDidDocument if it is no object or its `id` is not `did`.
    Spec: (ID-30, ID-31, ID-32, ID-33)
    """
    if not isinstance(content, dict):
        raise InvalidDidDocument("DID document is not an object")
    if content.get("id") != did:
        raise InvalidDidDocument("DID document has another id")
    methods = (_parse_method(entry, did) for entry in _entries(content, "verificationMethod"))
    services = (_parse_service(entry, did) for entry in _entries(content, "service"))
    return DidDocument(
        did=did,
        also_known_as=tuple(
            alias for alias in _entries(content, "alsoKnownAs") if isinstance(alias, str)
        ),
        verification_methods=tuple(method for method in methods if method is not None),
        services=tuple(service for service in services if service is not None),
        source=content,
    )


def render_web_document(
    did: Did,
    *,
    services: Mapping[str, tuple[str, str]],
    keys: Mapping[str, PublicKey] | None = None,
    also_known_as: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Render the JSON of a did:web document, as our own service publishes one (ID-34).

    `services` maps a bare id to (type, endpoint), `keys` a bare id to a key. Also what a user of a
    did:web account is shown to publish (ID-41).
    """
    document: dict[str, Any] = {"@context": list(_MULTIKEY_CONTEXTS), "id": did}
    if also_known_as:
        document["alsoKnownAs"] = list(also_known_as)
    if keys:
        document["verificationMethod"] = [
            {
                "id": f"{did}#{name}",
                "type": "Multikey",
                "controller": did,
                "publicKeyMultibase": key.multibase,
            }
            for name, key in keys.items()
        ]
    document["service"] = [
        {"id": f"#{name}", "type": kind, "serviceEndpoint": endpoint}
        for name, (kind, endpoint) in services.items()
    ]
    return document


def parse_origin(url: str) -> str | None:
    """Return `url` without a trailing slash if it is http(s)://host[:port] and nothing more."""
    if len(url) > 512 or not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return None
    if "@" in parts.netloc or parts.path not in ("", "/") or "?" in url or "#" in url:
        return None
    return f"{parts.scheme}://{parts.netloc}"


def _entries(content: dict[str, Any], name: str) -> list[Any]:
    value = content.get(name)
    return value[:_MAX_ENTRIES] if isinstance(value, list) else []


def _bare_id(value: object, did: Did) -> str | None:
    """Return the fragment of an id that is relative or starts with this very DID."""
    if not isinstance(value, str):
        return None
    prefix, hash_sign, name = value.partition("#")
    return name if hash_sign and prefix in ("", did) else None


def _parse_method(entry: object, did: Did) -> VerificationMethod | None:
    if not isinstance(entry, dict):
        return None
    name = _bare_id(entry.get("id"), did)
    kind, multibase = entry.get("type"), entry.get("publicKeyMultibase")
    if name is None or not isinstance(kind, str) or not isinstance(multibase, str):
        return None
    if entry.get("controller") != did:
        return None
    return VerificationMethod(name, kind, multibase)


def _parse_service(entry: object, did: Did) -> Service | None:
    if not isinstance(entry, dict):
        return None
    name = _bare_id(entry.get("id"), did)
    kind, endpoint = entry.get("type"), entry.get("serviceEndpoint")
    if name is None or not isinstance(kind, str) or not isinstance(endpoint, str):
        return None
    return Service(name, kind, endpoint)


def _parse_method_key(method: VerificationMethod) -> PublicKey | None:
    try:
        if method.type == "Multikey":
            return parse_multikey(method.multibase)
        if is_legacy_key_type(method.type):
            return parse_legacy_key(method.type, method.multibase)
    except InvalidKey:
        return None
    return None
