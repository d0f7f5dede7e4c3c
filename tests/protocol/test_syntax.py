"""Identifiers and other checked strings, against our vectors and the published ones.

Spec: DM-32, DM-60, DM-63, DM-64, DM-66, DM-67, DM-68, DM-69, DM-70, DM-71, DM-73, DM-74,
DM-76, DM-77.
"""

import contextlib
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pds.protocol import syntax
from pds.protocol.syntax import (
    AtUri,
    Did,
    InvalidSyntax,
    format_datetime,
    is_blessed_did,
    is_cid_string,
    is_disallowed_tld,
    parse_at_identifier,
    parse_at_uri,
    parse_datetime,
    parse_did,
    parse_handle,
    parse_language,
    parse_nsid,
    parse_record_key,
    parse_record_path,
    parse_tid,
    parse_uri,
)
from tests.support import interop_dir, interop_lines, load_vectors
from tests.support_pace import within

VECTORS = load_vectors("syntax.json")


def parse_cid_string(text: str) -> str:
    if not is_cid_string(text):
        raise InvalidSyntax("not like a CID")
    return text


PARSERS: dict[str, Callable[[str], Any]] = {
    "did": parse_did,
    "handle": parse_handle,
    "at_identifier": parse_at_identifier,
    "nsid": parse_nsid,
    "record_key": parse_record_key,
    "tid": parse_tid,
    "record_path": parse_record_path,
    "at_uri": parse_at_uri,
    "datetime": parse_datetime,
    "language": parse_language,
    "uri": parse_uri,
    "cid_string": parse_cid_string,
}
PUBLISHED: dict[str, Callable[[str], Any]] = {
    "atidentifier": parse_at_identifier,
    "aturi": parse_at_uri,
    "cid": parse_cid_string,
    "datetime": parse_datetime,
    "did": parse_did,
    "handle": parse_handle,
    "language": parse_language,
    "nsid": parse_nsid,
    "recordkey": parse_record_key,
    "tid": parse_tid,
    "uri": parse_uri,
}


@pytest.mark.parametrize("kind", PARSERS)
def test_our_vectors(kind: str) -> None:
    parse = PARSERS[kind]
    for text in VECTORS[kind]["valid"]:
        parse(text)
    for text in VECTORS[kind]["invalid"]:
        with pytest.raises(InvalidSyntax):
            parse(text)
            pytest.fail(f"accepted {text!r}")


def test_every_parser_has_vectors() -> None:
    assert set(VECTORS) == set(PARSERS)


def test_published_vectors() -> None:
    files = sorted((interop_dir() / "syntax").glob("*.txt"))
    assert len(files) == 24
    for file in files:
        kind, _check, verdict = file.stem.split("_")
        for line in interop_lines(file):
            try:
                PUBLISHED[kind](line)
                found = "valid"
            except InvalidSyntax:
                found = "invalid"
            assert found == verdict, f"{file.name}: {line[:80]!r}"


def test_permissive_language_tags_accept_what_is_only_well_formed() -> None:
    for text in interop_lines(interop_dir() / "syntax/language_parse_invalid.txt"):
        assert parse_language(text, strict=False) == text


def test_text_comes_out_as_it_went_in() -> None:
    for kind in set(PARSERS) - {"handle", "record_path", "at_uri", "at_identifier"}:
        for text in VECTORS[kind]["valid"]:
            assert PARSERS[kind](text) == text


def test_handles_come_out_in_lower_case() -> None:
    assert parse_handle("Alice.Example.COM") == "alice.example.com"
    assert parse_at_identifier("Alice.Example.COM") == "alice.example.com"
    assert str(parse_at_uri("at://Alice.Example.COM/a.b.cD/X")) == "at://alice.example.com/a.b.cD/X"


def test_an_at_uri_has_parts() -> None:
    did = Did("did:plc:abc")
    uri = parse_at_uri("at://did:plc:abc/com.example.record/self")
    assert uri == AtUri.of(did, "com.example.record/self")
    assert (uri.authority, uri.collection, uri.rkey) == (did, "com.example.record", "self")
    for text in VECTORS["at_uri"]["valid"]:
        assert str(parse_at_uri(text)) == text
    with pytest.raises(InvalidSyntax):
        AtUri.of(did, "nonsense")


@pytest.mark.parametrize(
    ("did", "blessed"),
    [
        ("did:plc:ab2cd3ef4gh5ij6kl7mn2opq", True),
        ("did:plc:ab2cd3ef4gh5ij6kl7mn2op", False),
        ("did:plc:ab2cd3ef4gh5ij6kl7mn2op1", False),
        ("did:plc:AB2cd3ef4gh5ij6kl7mn2opq", False),
        ("did:web:pds.example.com", True),
        ("did:web:pds.example.com:alice", False),
        ("did:web:pds.example.com%3A443", False),
        ("did:web:localhost%3A2583", False),
        ("did:key:zQ3sh", False),
    ],
)
def test_blessed_methods_are_plc_and_web_of_a_host_name(did: str, blessed: bool) -> None:
    assert is_blessed_did(did) is blessed


def test_a_local_web_did_is_blessed_in_development_only() -> None:
    assert is_blessed_did("did:web:localhost%3A2583", dev=True)
    assert is_blessed_did("did:web:localhost", dev=True)
    assert not is_blessed_did("did:web:localhost%3Aabc", dev=True)


def test_top_level_domains_that_nobody_can_register_are_disallowed() -> None:
    """Spec: ID-2."""
    for tld in ["alt", "arpa", "example", "internal", "invalid", "local", "localhost", "onion"]:
        assert is_disallowed_tld(f"alice.{tld}")
        assert is_disallowed_tld(f"alice.{tld.upper()}", dev=True)
    assert is_disallowed_tld("alice.test")
    assert not is_disallowed_tld("alice.test", dev=True)
    assert not is_disallowed_tld("example.com")


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)))  # noqa: DTZ001
def test_formatted_datetimes_are_valid_and_hold_the_millisecond(instant: datetime) -> None:
    """Spec: DM-74."""
    instant = instant.replace(tzinfo=UTC)
    us = (instant - datetime(1970, 1, 1, tzinfo=UTC)) // (instant.resolution)
    text = format_datetime(us)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert parse_datetime(text) == text
    back = datetime.fromisoformat(text)
    assert 0 <= (instant - back).total_seconds() < 0.001


def test_an_instant_that_no_datetime_can_hold_is_refused() -> None:
    with pytest.raises(InvalidSyntax):
        format_datetime(2**60)


@given(st.datetimes(), st.integers(-23 * 60, 23 * 60), st.text("0123456789", max_size=12))
def test_datetimes_that_python_can_form_are_accepted(
    instant: datetime, offset: int, fraction: str
) -> None:
    sign, minutes = ("-" if offset < 0 else "+"), abs(offset)
    zone = f"{sign}{minutes // 60:02d}:{minutes % 60:02d}"
    text = instant.replace(microsecond=0).isoformat() + (f".{fraction}" if fraction else "") + zone
    if 1 < instant.year < 9999 and zone != "-00:00":
        assert parse_datetime(text) == text


@given(st.text(max_size=40))
def test_no_parser_fails_in_another_way(text: str) -> None:
    for parse in PARSERS.values():
        try:
            parse(text)
        except InvalidSyntax:
            continue


@pytest.mark.parametrize(
    "text",
    [
        "a" * 100_000,
        "a." * 50_000,
        "a-" * 126 + ".",
        "did:a:" + ":" * 2000 + "!",
        "en" + "-abcde" * 40 + "!",
        "en" + "-a-bc" * 50 + "!",
        "a." * 158 + "!",
        "at://" + "a." * 4000,
        "http:" + "/" * 8000,
        "2024-01-01T00:00:00." + "0" * 100_000,
        "a" * 4000 + " ",
    ],
    ids=lambda text: text[:12],
)
def test_nasty_text_is_judged_in_no_time(text: str) -> None:
    started = time.thread_time()
    for parse in PARSERS.values():
        with contextlib.suppress(InvalidSyntax):
            parse(text)
    assert within(0.25, started)


def test_the_placeholder_handle_is_a_handle() -> None:
    assert parse_handle(syntax.INVALID_HANDLE) == "handle.invalid"
