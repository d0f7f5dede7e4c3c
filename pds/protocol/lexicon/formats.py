"""The string formats of the schema language (LEX-26): syntax only, nothing is resolved.

`pds.protocol.syntax` decides. Where one shape makes up nearly all the traffic, a pattern that
accepts only a safe part of the valid texts answers first; whatever it does not match goes to the
parser, so a pattern can never change a verdict (a test compares them).
Formats are checked in their strict form (LEX-27): this code sees new writes and our own answers,
never old records.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from pds.protocol.syntax import (
    InvalidSyntax,
    is_cid_string,
    parse_at_identifier,
    parse_at_uri,
    parse_datetime,
    parse_did,
    parse_handle,
    parse_language,
    parse_nsid,
    parse_record_key,
    parse_tid,
    parse_uri,
)

FormatCheck = Callable[[str], bool]

# A day up to 28 exists in every month, so no calendar is needed.
_DATETIME: Final = re.compile(
    r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
    r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?Z"
)
_DID: Final = re.compile(r"did:plc:[a-z2-7]{24}")
_AT_URI: Final = re.compile(
    r"at://did:plc:[a-z2-7]{24}/[a-z]{1,30}(?:\.[a-z]{1,30}){1,3}\.[a-zA-Z]{1,60}"
    r"/[0-9A-Za-z][0-9A-Za-z_-]{0,60}"
)
_CID: Final = re.compile(r"baf(?:yrei|krei)[a-z2-7]{52}")
_LANGUAGE: Final = re.compile(r"[a-z]{2}(?:-[A-Z]{2})?")
_URI: Final = re.compile(r"https?://[0-9A-Za-z][!-~]{0,4000}")


def _parsed(parse: Callable[[str], object]) -> FormatCheck:
    def check(text: str) -> bool:
        try:
            parse(text)
        except InvalidSyntax:
            return False
        return True

    return check


def _or_parsed(common: re.Pattern[str], parse: Callable[[str], object]) -> FormatCheck:
    matches = common.fullmatch
    otherwise = _parsed(parse)

    def check(text: str) -> bool:
        return matches(text) is not None or otherwise(text)

    return check


def _is_cid(text: str) -> bool:
    return _CID.fullmatch(text) is not None or is_cid_string(text)


FORMATS: Final[Mapping[str, FormatCheck]] = MappingProxyType(
    {
        "at-identifier": _or_parsed(_DID, parse_at_identifier),
        "at-uri": _or_parsed(_AT_URI, parse_at_uri),
        "cid": _is_cid,
        "datetime": _or_parsed(_DATETIME, parse_datetime),
        "did": _or_parsed(_DID, parse_did),
        "handle": _parsed(parse_handle),
        "language": _or_parsed(_LANGUAGE, parse_language),
        "nsid": _parsed(parse_nsid),
        "record-key": _parsed(parse_record_key),
        "tid": _parsed(parse_tid),
        "uri": _or_parsed(_URI, parse_uri),
    }
)
"""Whether a text has the format, by the format's name."""
