"""Gets one schema from its authority, and believes only what is proven.

NSID -> authority domain -> DNS TXT record -> DID -> DID document -> the record
`com.atproto.lexicon.schema/<nsid>` of that DID, asked of its PDS with `com.atproto.sync.getRecord`.
The answer is a CAR whose commit must be that account's and carry the signature of its key, and
whose tree must lead to the record (LEX-81). So neither the PDS nor the line to it can put another
schema in its place; who controls the DNS zone decides.

Nothing is remembered here. A definite no is `LexiconNotFound`; everything else that goes wrong
leaves the question open. A schema of one of our own accounts is read from our own rows, where it is
held against the same proof (LEX-85).

Spec: (LEX-80, LEX-81, LEX-82, LEX-84)
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlencode

from pds.errors import (
    BadAnswer,
    NotResolvable,
    ProtocolError,
    Rejected,
    RemoteError,
    RequestError,
    Unreachable,
)
from pds.net.http import Answer
from pds.protocol.car import CarReader
from pds.protocol.cbor import decode
from pds.protocol.cid import Cid
from pds.protocol.diddoc import DidDocument
from pds.protocol.keys import PublicKey
from pds.protocol.lexicon.definitions import Document
from pds.protocol.lexicon.schema import SCHEMA_COLLECTION, SchemaError, parse_document
from pds.protocol.repo_verify import verify_record_proof
from pds.protocol.syntax import Did, Nsid
from pds.services.resolving import DidDocuments

MAX_CAR_BYTES: Final = 1024 * 1024 + 10 * 1024
"""Largest proof that is read (LEX-84): a record of the largest size, and the path to it."""
MAX_CAR_BLOCKS: Final = 200
"""A path has one node per level of the tree, which has seven for a million records."""
MAX_SCHEMA_BYTES: Final = 128 * 1024
"""Largest schema that is used: six times the largest one that is published today. Each byte of a
schema may cost a hundred of memory once it is compiled."""
FETCH_TIMEOUT_S: Final = 10.0
"""For all steps together."""
PDS_TIMEOUT_S: Final = 5.0
MAX_REDIRECTS: Final = 2

OwnProof = Callable[[Did, str, str], Awaitable[bytes]]
"""Returns the proof of a record of our own; raises RequestError where there is none to be had."""


class LexiconNotFound(NotResolvable):
    """There is definitely no usable schema of this name; the message says why."""


@dataclass(frozen=True, slots=True)
class PublishedLexicon:
    """A schema that was proven to be its authority's. `block` is the record as it was signed."""

    did: Did
    cid: Cid
    block: bytes
    document: Document

    @property
    def nsid(self) -> Nsid:
        """The name of the schema."""
        return self.document.id

    @property
    def uri(self) -> str:
        """Where it is published."""
        return f"at://{self.did}/{SCHEMA_COLLECTION}/{self.nsid}"


class Authorities(Protocol):
    """Who may define an NSID (`pds.identity.lexicon_names.LexiconAuthorities`)."""

    async def resolve(self, nsid: Nsid) -> Did:
        """Return the DID; raises NotResolvable or Unreachable."""


class HttpGetter(Protocol):
    """The part of an HTTP client that is needed here; it guards where requests may go."""

    async def get_bytes(self, url: str, **options: Any) -> Answer:
        """GET a small answer. Raises: RemoteError."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an account's records are, and with which key they are signed."""

    endpoint: str
    key: PublicKey


class LexiconFetcher:
    """Fetches and proves schemas, uncached."""

    def __init__(
        self,
        *,
        authorities: Authorities,
        documents: DidDocuments,
        http: HttpGetter,
        own_url: str | None = None,
        own_proof: OwnProof | None = None,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> None:
        """Ask hosts through `http`, which must be the guarded client: strangers aim it."""
        self._authorities = authorities
        self._documents = documents
        self._http = http
        self._own_url = own_url
        self._own_proof = own_proof
        self._timeout_s = timeout_s

    async def fetch(self, nsid: Nsid) -> PublishedLexicon:
        """Return the schema that is published as `nsid`.

        Raises: LexiconNotFound (a definite no); Unreachable and BadAnswer when it could not be
        found out. Spec: LEX-80, LEX-81, LEX-82, LEX-84
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._fetch(nsid)
        except TimeoutError as error:
            raise Unreachable(f"the schema of {nsid} was not to be had in time") from error
        except LexiconNotFound:
            raise
        except (NotResolvable, Rejected) as error:
            raise LexiconNotFound(str(error)) from error

    async def _fetch(self, nsid: Nsid) -> PublishedLexicon:
        did = await self._authorities.resolve(nsid)
        place = _place_of(await self._documents.resolve_did(did))
        try:
            return await self._fetch_from(place, did, nsid)
        except RemoteError:
            # The account may have moved or changed its key since its document was fetched.
            newer = _place_of(await self._documents.resolve_did(did, refresh=True))
            if newer == place:
                raise
            return await self._fetch_from(newer, did, nsid)

    async def _fetch_from(self, place: _Place, did: Did, nsid: Nsid) -> PublishedLexicon:
        car = await self._download(place, did, nsid)
        try:
            # Decoding and hashing 1 MB takes milliseconds that the event loop has not.
            block = await asyncio.to_thread(_read_proof, car, did, place.key, nsid)
        except ProtocolError as error:
            raise BadAnswer(f"the proof of {nsid} is not valid: {error}") from error
        if block is None:
            raise LexiconNotFound(f"{did} has no schema record {nsid}")
        return await asyncio.to_thread(read_published, did, nsid, block)

    async def _download(self, place: _Place, did: Did, nsid: Nsid) -> bytes:
        if place.endpoint == self._own_url and self._own_proof is not None:
            try:
                return await self._own_proof(did, SCHEMA_COLLECTION, nsid)
            except RequestError as error:
                raise LexiconNotFound(error.message) from error
        query = urlencode({"did": did, "collection": SCHEMA_COLLECTION, "rkey": nsid})
        answer = await self._http.get_bytes(
            f"{place.endpoint}/xrpc/com.atproto.sync.getRecord?{query}",
            headers={"Accept": "application/vnd.ipld.car"},
            max_bytes=MAX_CAR_BYTES,
            timeout_s=PDS_TIMEOUT_S,
            max_redirects=MAX_REDIRECTS,
        )
        return answer.body


def read_published(did: Did, nsid: Nsid, block: bytes) -> PublishedLexicon:
    """Read a proven record as a schema.

    Raises: LexiconNotFound when it is none that can be used (LEX-11, LEX-82).
    """
    if len(block) > MAX_SCHEMA_BYTES:
        raise LexiconNotFound(f"the schema {nsid} is larger than {MAX_SCHEMA_BYTES} bytes")
    record = decode(block)
    if not isinstance(record, dict) or record.get("$type") != SCHEMA_COLLECTION:
        raise LexiconNotFound(f"the record {nsid} is not a schema")
    if record.get("id") != nsid:
        raise LexiconNotFound(f"the schema {nsid} has another id")
    try:
        document = parse_document(record)
    except SchemaError as error:
        raise LexiconNotFound(f"the schema {nsid} cannot be used: {error}") from error
    return PublishedLexicon(did, Cid.of_data(block), block, document)


def _place_of(document: DidDocument) -> _Place:
    endpoint, key = document.pds_endpoint, document.signing_key
    if endpoint is None or key is None:
        raise LexiconNotFound(f"{document.did} has no PDS or no signing key")
    return _Place(endpoint, key)


def _read_proof(car: bytes, did: Did, key: PublicKey, nsid: Nsid) -> bytes | None:
    """Return the record that a CAR proves, None if it proves that there is none.

    Raises: ProtocolError of some kind. Spec: REPO-50, REPO-51
    """
    reader = CarReader(max_bytes=MAX_CAR_BYTES, max_blocks=MAX_CAR_BLOCKS)
    blocks = dict(reader.feed(car))
    reader.finish()
    if len(reader.roots) != 1:
        raise ProtocolError("the CAR must have one root")
    path = f"{SCHEMA_COLLECTION}/{nsid}"
    return verify_record_proof(reader.roots[0], blocks, path, did=did, key=key)
