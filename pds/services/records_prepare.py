"""From what a client wrote to what a repo stores: one record at a time, before any transaction.

Whatever `validate` says, a stored record is a map in the data model, names its collection in
`$type`, has a legal record key and no blob in the old form, and fits into a block (LEX-60). The
schema is checked as `validate` asks (LEX-61, LEX-62, LEX-63). A batch is prepared whole before
anything of it is written (LEX-66).

Which schemas are known is decided before (`lexicon_resolution`): bundled ones, and those of other
collections as far as they were found out.

Pure but for the schema catalogs, and safe on any thread.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from pds.errors import ProtocolError, RequestError
from pds.protocol import cbor
from pds.protocol.cid import Cid
from pds.protocol.data import (
    MAX_RECORD_BYTES,
    BlobRef,
    Data,
    InvalidData,
    Json,
    find_blob_refs,
    find_legacy_blobs,
    record_from_json,
)
from pds.protocol.lexicon.catalog import Catalog
from pds.protocol.repo import UNSET, Action, Unset, Write
from pds.protocol.syntax import InvalidSyntax, Nsid, RecordKey, parse_nsid, parse_record_key

ValidationStatus = Literal["valid", "unknown"]

SCHEMA_COLLECTION: Final = "com.atproto.lexicon.schema"

_SUBJECT_URI: Final = frozenset({"app.bsky.feed.like", "app.bsky.feed.repost"})
_SUBJECT_DID: Final = frozenset({"app.bsky.graph.follow", "app.bsky.graph.block"})
BACKLINK_COLLECTIONS: Final = _SUBJECT_URI | _SUBJECT_DID
"""Collections with at most one record per subject (XRPC-95)."""

NO_SCHEMAS: Final[Mapping[str, Catalog]] = MappingProxyType({})
MAX_SUBJECT_CHARS: Final = 1500
"""Longest subject that is remembered; an AT URI with a DID of usual length has under 700."""


class RecordWrite(NamedTuple):
    """A write as a client asks for it; `Repos.write` fills in an `rkey` that was left out."""

    action: Action
    collection: str
    rkey: str | None = None
    value: Json = None
    swap: Cid | Unset | None = UNSET


class PreparedWrite(NamedTuple):
    """A write that is ready for the tree, with what the store notes about it.

    `subject` is what a like, repost, follow or block points at. With `replaces_duplicates` older
    records with that subject are deleted in the same commit.
    """

    write: Write
    collection: Nsid
    rkey: RecordKey
    blob_refs: tuple[BlobRef, ...] = ()
    subject: str | None = None
    replaces_duplicates: bool = False
    validation_status: ValidationStatus | None = None

    @property
    def path(self) -> str:
        """The record's path in the repo."""
        return self.write.path


def prepare_writes(
    writes: Sequence[RecordWrite],
    *,
    catalog: Catalog,
    validate: bool | None,
    replace_duplicates: bool = False,
    others: Mapping[str, Catalog] = NO_SCHEMAS,
) -> list[PreparedWrite]:
    """Check and encode every record of a batch; all record keys are filled in.

    `others` has the schemas of collections that `catalog` does not know.
    Raises: RequestError `InvalidRequest`, for the first write that cannot be taken.
    Spec: lexicon#validation-options (LEX-60..LEX-67)
    """
    return [
        _prepare(
            write,
            others.get(write.collection, catalog),
            validate,
            replace_duplicates=replace_duplicates,
        )
        for write in writes
    ]


def unknown_collections(writes: Sequence[RecordWrite], catalog: Catalog) -> set[str]:
    """Return the collections of records to be written that `catalog` has no document of."""
    return {
        write.collection
        for write in writes
        if write.collection not in catalog.documents and write.action != "delete"
    }


def _prepare(
    asked: RecordWrite,
    catalog: Catalog,
    validate: bool | None,
    *,
    replace_duplicates: bool,
) -> PreparedWrite:
    try:
        collection = parse_nsid(asked.collection)
        rkey = parse_record_key(asked.rkey or "")
    except InvalidSyntax as error:
        raise _refuse(str(error)) from error
    path = f"{collection}/{rkey}"
    if asked.action == "delete":
        return PreparedWrite(Write("delete", path, swap=asked.swap), collection, rkey)
    record, block = _encode(collection, asked.value)
    status = None if validate is False else _validate(catalog, collection, rkey, record, validate)
    subject = subject_of(collection, record) if collection in BACKLINK_COLLECTIONS else None
    return PreparedWrite(
        Write(asked.action, path, Cid.of_data(block), block, asked.swap),
        collection,
        rkey,
        blob_refs=tuple(find_blob_refs(record)) if b"dblob" in block else (),
        subject=subject,
        replaces_duplicates=replace_duplicates and subject is not None and validate is not False,
        validation_status=status,
    )


def _encode(collection: Nsid, value: Json) -> tuple[dict[str, Data], bytes]:
    """Check the data model and return the record with its block."""
    try:
        record = record_from_json(value)
        named = record.setdefault("$type", collection)
        if named != collection:
            raise _refuse(f"Invalid $type: expected {collection}, got {named!r}")
        block = cbor.encode(record)
    except (InvalidData, cbor.CborError) as error:
        raise _refuse(f"Invalid {collection} record: {error}") from error
    if len(block) > MAX_RECORD_BYTES:
        raise _refuse(f"Record is too large: {len(block)} bytes, at most {MAX_RECORD_BYTES}")
    if b"hmimeType" in block and b"ccid" in block and find_legacy_blobs(record):
        raise _refuse("Legacy blobs are not allowed")
    return record, block


def _validate(
    catalog: Catalog,
    collection: Nsid,
    rkey: RecordKey,
    record: dict[str, Data],
    validate: bool | None,
) -> ValidationStatus:
    try:
        status = catalog.validate_record(collection, rkey, record)
        if collection == SCHEMA_COLLECTION:
            _check_schema_record(rkey, record)
    except ProtocolError as error:
        raise _refuse(f"Invalid {collection} record: {error}") from error
    if validate and status == "unknown":
        raise _refuse(f"Unknown lexicon type: {collection}")
    return status


def _check_schema_record(rkey: RecordKey, record: dict[str, Data]) -> None:
    """Hold a published schema against the rules for schemas (LEX-67).

    Raises: ProtocolError.
    """
    if record.get("id") != rkey:
        raise ProtocolError("the record key of a schema is its id")
    document: dict[str, Any] = {key: value for key, value in record.items() if key != "$type"}
    refused = Catalog.from_documents([document]).refused
    for reason in refused.values():
        raise ProtocolError(str(reason))


def index_entries(path: str, block: bytes) -> tuple[list[Cid], str | None]:
    """Return what the indexes keep of a verified record: its blobs, each once, and its subject.

    Blobs in the old form count too. The block is decoded only when it can name something.
    Spec: (DM-41, DM-42)
    """
    collection = path.partition("/")[0]
    has_blob = b"dblob" in block or (b"hmimeType" in block and b"ccid" in block)
    has_subject = collection in BACKLINK_COLLECTIONS
    if not (has_blob or has_subject):
        return [], None
    record: Any = cbor.decode(block)
    refs = [*find_blob_refs(record), *find_legacy_blobs(record)] if has_blob else []
    cids = list(dict.fromkeys(ref.cid for ref in refs if ref.cid.is_blessed_raw))
    return cids, subject_of(collection, record) if has_subject else None


def subject_of(collection: str, record: dict[str, Data]) -> str | None:
    """Return what a record of one of `BACKLINK_COLLECTIONS` points at.

    None for what can be no DID or AT URI: an index takes no text of any length and content.
    """
    subject = record.get("subject")
    if collection in _SUBJECT_URI and isinstance(subject, dict):
        subject = subject.get("uri")
    if not isinstance(subject, str) or len(subject) > MAX_SUBJECT_CHARS:
        return None
    return subject if subject.isascii() and subject.isprintable() else None


def _refuse(message: str) -> RequestError:
    return RequestError("InvalidRequest", message)
