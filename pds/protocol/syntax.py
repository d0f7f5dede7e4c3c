"""Identifiers and other strings with a syntax: DIDs, handles, NSIDs, keys, URIs, datetimes.

Each kind is a `NewType` over `str` made only by its `parse_*`, so that a function that takes a
`Did` cannot be given unchecked text. Strings are kept as received, except that handles are lower
case (DM-68). Every pattern runs in linear time and every length is bounded first.

Spec: lexicon#string-formats (DM-60 to DM-77)
"""

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NewType, Self

from pds.errors import ProtocolError

Did = NewType("Did", str)
Handle = NewType("Handle", str)
Nsid = NewType("Nsid", str)
RecordKey = NewType("RecordKey", str)
Tid = NewType("Tid", str)
Language = NewType("Language", str)
Uri = NewType("Uri", str)
Datetime = NewType("Datetime", str)

MAX_DID_CHARS: Final = 2048
MAX_HANDLE_CHARS: Final = 253
MAX_NSID_CHARS: Final = 317
MAX_RECORD_KEY_CHARS: Final = 512
MAX_URI_BYTES: Final = 8192
MAX_DATETIME_CHARS: Final = 64
MAX_CID_CHARS: Final = 256

INVALID_HANDLE: Final = Handle("handle.invalid")
"""Shown in place of a handle that does not resolve to its DID."""


class InvalidSyntax(ProtocolError):
    """Text that does not have the syntax of its kind."""


# --- DIDs and handles -------------------------------------------------------------------------

_DID: Final = re.compile(r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]", re.ASCII)
_PLC: Final = re.compile(r"did:plc:[a-z2-7]{24}", re.ASCII)
_LABEL: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HANDLE: Final = re.compile(
    rf"(?:{_LABEL}\.)+[a-zA-Z](?:[a-zA-Z0-9-]{{0,61}}[a-zA-Z0-9])?", re.ASCII
)
_LOCALHOST: Final = re.compile(r"localhost(?:%3A[0-9]{1,5})?", re.ASCII)

_DISALLOWED_TLDS: Final = frozenset(
    ("alt", "arpa", "example", "internal", "invalid", "local", "localhost", "onion")
)


def parse_did(text: str) -> Did:
    """Parse a DID of any method; percent-encoding is not looked into (DM-66)."""
    if len(text) > MAX_DID_CHARS or not _DID.fullmatch(text):
        raise InvalidSyntax("not a DID")
    return Did(text)


def is_blessed_did(did: str, *, dev: bool = False) -> bool:
    """Whether the method is one that this network uses: plc, or web of a host name (DM-67).

    In development `did:web:localhost%3A<port>` is accepted as well.
    """
    if did.startswith("did:plc:"):
        return bool(_PLC.fullmatch(did))
    if not did.startswith("did:web:"):
        return False
    host = did.removeprefix("did:web:")
    if dev and _LOCALHOST.fullmatch(host):
        return True
    return len(host) <= MAX_HANDLE_CHARS and bool(_HANDLE.fullmatch(host))


def parse_handle(text: str) -> Handle:
    """Parse a handle and return it in lower case (DM-68)."""
    if len(text) > MAX_HANDLE_CHARS or not _HANDLE.fullmatch(text):
        raise InvalidSyntax("not a handle")
    return Handle(text.lower())


def is_disallowed_tld(handle: str, *, dev: bool = False) -> bool:
    """Whether a handle lies under a top-level domain that cannot be registered or resolved.

    `.test` is allowed in development only. Spec: handle#additional-non-syntax-restrictions
    """
    tld = handle.rpartition(".")[2].lower()
    return tld in _DISALLOWED_TLDS or (tld == "test" and not dev)


def parse_at_identifier(text: str) -> Did | Handle:
    """Parse a DID if it starts like one, else a handle (DM-69)."""
    return parse_did(text) if text.startswith("did:") else parse_handle(text)


# --- Records: NSIDs, keys, paths, URIs --------------------------------------------------------

_NSID: Final = re.compile(
    r"[a-zA-Z](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
    rf"(?:\.{_LABEL})+"
    r"\.[a-zA-Z][a-zA-Z0-9]{0,62}",
    re.ASCII,
)
_RECORD_KEY: Final = re.compile(r"[A-Za-z0-9._:~-]{1,512}", re.ASCII)
_TID: Final = re.compile(r"[2-7a-j][2-7a-z]{12}", re.ASCII)


def parse_nsid(text: str) -> Nsid:
    """Parse a namespaced identifier; the case is kept (DM-64).

    Only the whole length is bounded: the published vectors hold a domain part over 253.
    """
    if len(text) > MAX_NSID_CHARS or not _NSID.fullmatch(text):
        raise InvalidSyntax("not an NSID")
    return Nsid(text)


def parse_record_key(text: str) -> RecordKey:
    """Parse a record key (DM-63)."""
    if not _RECORD_KEY.fullmatch(text) or text in {".", ".."}:
        raise InvalidSyntax("not a record key")
    return RecordKey(text)


def parse_tid(text: str) -> Tid:
    """Parse a timestamp identifier (DM-60)."""
    if not _TID.fullmatch(text):
        raise InvalidSyntax("not a TID")
    return Tid(text)


def parse_record_path(text: str) -> tuple[Nsid, RecordKey]:
    """Parse a path in a repo, `collection/rkey` (REPO-10)."""
    collection, slash, rkey = text.partition("/")
    if not slash:
        raise InvalidSyntax("a record path is collection/rkey")
    return parse_nsid(collection), parse_record_key(rkey)


@dataclass(frozen=True, slots=True)
class AtUri:
    """An `at://` URI of a repo, a collection or a record."""

    authority: Did | Handle
    collection: Nsid | None = None
    rkey: RecordKey | None = None

    @classmethod
    def of(cls, did: Did, path: str) -> Self:
        """Return the URI of the record at `path` in the repo of `did`."""
        return cls(did, *parse_record_path(path))

    def __str__(self) -> str:
        parts = [part for part in (self.authority, self.collection, self.rkey) if part]
        return "at://" + "/".join(parts)


def parse_at_uri(text: str) -> AtUri:
    """Parse the restricted form that lexicons use: no query, fragment or trailing slash (DM-70).

    The handle comes out in lower case (DM-71).
    """
    if len(text) > MAX_URI_BYTES or not text.startswith("at://"):
        raise InvalidSyntax("not an at:// URI")
    authority, *path = text[5:].split("/")
    if len(path) > 2:
        raise InvalidSyntax("an at:// URI has at most a collection and a record key")
    return AtUri(
        parse_at_identifier(authority),
        parse_nsid(path[0]) if path else None,
        parse_record_key(path[1]) if len(path) == 2 else None,
    )


# --- Datetimes --------------------------------------------------------------------------------

_DATETIME: Final = re.compile(
    r"(\d{4})-(0[1-9]|1[012])-([0-2]\d|3[01])T([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.\d+)?"
    r"(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d))",
    re.ASCII,
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def parse_datetime(text: str) -> Datetime:
    """Parse a datetime strictly: seconds and zone present, a real day, not year -1 or 10000 in UTC.

    The text is kept as it is (DM-25). Leap seconds are refused, as elsewhere on the network
    (DM-73).
    """
    match = _DATETIME.fullmatch(text) if len(text) <= MAX_DATETIME_CHARS else None
    if match is None or text.endswith("-00:00"):
        raise InvalidSyntax("not a datetime")
    year, month, day = int(match[1]), int(match[2]), int(match[3])
    # Year 0 was a leap year, like 2000; Python's calendar begins with year 1.
    if not 1 <= day <= monthrange(year or 2000, month)[1]:
        raise InvalidSyntax("datetime with a day that does not exist")
    if match[7] and year in {0, 9999}:
        _check_utc_year(match)
    return Datetime(text)


def _check_utc_year(match: re.Match[str]) -> None:
    """Refuse a zone that moves the first day of year 0 or the last of 9999 out of range."""
    minutes = int(match[4]) * 60 + int(match[5])
    offset = int(match[8]) * 60 + int(match[9])
    day = match[1] + match[2] + match[3]
    if match[7] == "+" and day == "00000101" and minutes < offset:
        raise InvalidSyntax("datetime before year 0 in UTC")
    if match[7] == "-" and day == "99991231" and minutes + offset >= 24 * 60:
        raise InvalidSyntax("datetime after year 9999 in UTC")


def format_datetime(us: int) -> str:
    """Return unix microseconds as UTC with milliseconds and `Z` (DM-74).

    Raises: InvalidSyntax beyond year 9999.
    """
    try:
        instant = _EPOCH + timedelta(microseconds=us)
    except OverflowError as error:
        raise InvalidSyntax("instant out of range") from error
    return instant.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


# --- Languages, URIs, CIDs as text ------------------------------------------------------------

_GRANDFATHERED: Final = re.compile(
    r"en-gb-oed|i-(?:ami|bnn|default|enochian|hak|klingon|lux|mingo|navajo|pwn|tao|tay|tsu)"
    r"|sgn-(?:be-fr|be-nl|ch-de)|art-lojban|cel-gaulish|no-bok|no-nyn"
    r"|zh-(?:guoyu|hakka|min|min-nan|xiang)",
    re.ASCII | re.IGNORECASE,
)
_PRIVATE_USE: Final = r"[xX](?:-[a-zA-Z0-9]{1,8})+"
_VARIANT: Final = r"(?:[a-zA-Z0-9]{5,8}|[0-9][a-zA-Z0-9]{3})"
_LANGUAGE: Final = re.compile(
    r"(?P<primary>[a-zA-Z]{2,3}(?:-[a-zA-Z]{3}){0,3}|[a-zA-Z]{4,8})"
    r"(?:-[a-zA-Z]{4})?"
    r"(?:-(?:[a-zA-Z]{2}|[0-9]{3}))?"
    rf"(?P<variants>(?:-{_VARIANT})*)"
    r"(?P<extensions>(?:-[0-9a-wy-zA-WY-Z](?:-[a-zA-Z0-9]{2,8})+)*)"
    rf"(?:-{_PRIVATE_USE})?",
    re.ASCII,
)
_PRIVATE_ONLY: Final = re.compile(_PRIVATE_USE, re.ASCII)
_STRICT_PRIMARY: Final = re.compile(r"[a-z]{2,3}(?:-.*)?", re.ASCII)
_MAX_LANGUAGE_CHARS: Final = 256


def parse_language(text: str, *, strict: bool = True) -> Language:
    """Parse a BCP 47 language tag (DM-76).

    `strict`, for new records: the first subtag is two or three lower-case letters, and no variant
    or extension letter comes twice. Otherwise any well-formed tag.
    """
    if len(text) > _MAX_LANGUAGE_CHARS:
        raise InvalidSyntax("not a language tag")
    if _GRANDFATHERED.fullmatch(text) or _PRIVATE_ONLY.fullmatch(text):
        return Language(text)
    match = _LANGUAGE.fullmatch(text)
    if match is None:
        raise InvalidSyntax("not a language tag")
    if strict:
        if not _STRICT_PRIMARY.fullmatch(text):
            raise InvalidSyntax("a language tag starts with two or three lower-case letters")
        variants = match["variants"].lower().split("-")[1:]
        singletons = [part for part in match["extensions"].lower().split("-") if len(part) == 1]
        if len(set(variants)) != len(variants) or len(set(singletons)) != len(singletons):
            raise InvalidSyntax("a language tag repeats a variant or an extension")
    return Language(text)


_URI: Final = re.compile(r"\w+:(?://)?[^\s/]\S*", re.ASCII)
_URI_SCHEME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:(?://)?[^\s/]\S*", re.ASCII)
_WHITESPACE: Final = re.compile(r"\s")


def parse_uri(text: str) -> Uri:
    """Parse a URI of any scheme, loosely: a scheme, a colon and no blanks (DM-77)."""
    if (
        not (_URI.fullmatch(text) or _URI_SCHEME.fullmatch(text))
        or _WHITESPACE.search(text)
        or len(text) > MAX_URI_BYTES
        or len(text.encode("utf-8", "surrogatepass")) > MAX_URI_BYTES
    ):
        raise InvalidSyntax("not a URI")
    return Uri(text)


_CID_TEXT: Final = re.compile(r"[a-zA-Z0-9+=]{8,256}", re.ASCII)


def is_cid_string(text: str) -> bool:
    """Whether text looks like a CID of version 1 in any multibase (DM-32).

    For schema validation only; where a CID is followed, `pds.protocol.cid.parse_cid` decides.
    """
    return bool(_CID_TEXT.fullmatch(text)) and not text.startswith("Qm")
