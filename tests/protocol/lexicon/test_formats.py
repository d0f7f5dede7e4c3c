"""String formats (LEX-26, LEX-27): the published files, and shortcuts that change nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pds.protocol.lexicon import formats
from pds.protocol.lexicon.formats import FORMATS
from pds.protocol.syntax import (
    InvalidSyntax,
    is_cid_string,
    parse_at_uri,
    parse_datetime,
    parse_did,
    parse_language,
    parse_uri,
)
from tests.support import interop_dir, interop_lines
from tests.support_lexicon import BROKEN, EXAMPLES

FILES = {
    "at-identifier": "atidentifier",
    "at-uri": "aturi",
    "cid": "cid",
    "datetime": "datetime",
    "did": "did",
    "handle": "handle",
    "language": "language",
    "nsid": "nsid",
    "record-key": "recordkey",
    "tid": "tid",
    "uri": "uri",
}


def test_all_formats_of_the_language_are_known() -> None:
    """LEX-26."""
    assert FORMATS.keys() == FILES.keys() == EXAMPLES.keys() == BROKEN.keys()


@pytest.mark.parametrize("name", sorted(FILES))
def test_published_texts_get_the_published_verdict(name: str) -> None:
    """The syntax files, through the formats (LEX-26, LEX-27)."""
    folder = interop_dir() / "syntax"
    refused_strictly = {
        line
        for path in folder.glob(f"{FILES[name]}_parse_invalid.txt")
        for line in interop_lines(path)
    }
    valid = interop_lines(folder / f"{FILES[name]}_syntax_valid.txt")
    invalid = interop_lines(folder / f"{FILES[name]}_syntax_invalid.txt")
    assert valid
    assert invalid
    assert [t for t in valid if not FORMATS[name](t) and t not in refused_strictly] == []
    assert [t for t in (*invalid, *refused_strictly) if FORMATS[name](t)] == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_examples_and_counterexamples(name: str) -> None:
    """LEX-26."""
    assert all(FORMATS[name](text) for text in EXAMPLES[name])
    assert not FORMATS[name](BROKEN[name])
    assert not FORMATS[name]("")
    assert not any(FORMATS[name](text + "\n") for text in EXAMPLES[name])


@pytest.mark.parametrize("tld", ["test", "local", "arpa", "onion", "invalid", "example"])
def test_reserved_top_level_domains_are_not_refused_here(tld: str) -> None:
    """LEX-26: only syntax; registration has its own rules."""
    assert FORMATS["handle"](f"alice.{tld}")
    assert FORMATS["at-identifier"](f"alice.{tld}")


@pytest.mark.parametrize("did", ["did:plc:abc", "did:key:zQ3sh", "did:web:a.b", "did:new:x%20y"])
def test_did_methods_are_not_restricted(did: str) -> None:
    """LEX-26."""
    assert FORMATS["did"](did)


def _accepts(parse: object, text: str) -> bool:
    try:
        parse(text)  # type: ignore[operator]
    except InvalidSyntax:
        return False
    return True


SHORTCUTS = {
    "datetime": (formats._DATETIME, parse_datetime),
    "did": (formats._DID, parse_did),
    "at-uri": (formats._AT_URI, parse_at_uri),
    "language": (formats._LANGUAGE, parse_language),
    "uri": (formats._URI, parse_uri),
}


@pytest.mark.parametrize("name", sorted(SHORTCUTS))
@given(data=st.data())
def test_shortcuts_accept_only_what_the_parser_accepts(name: str, data: st.DataObject) -> None:
    """A shortcut may answer earlier, never otherwise."""
    pattern, parse = SHORTCUTS[name]
    text = data.draw(st.from_regex(pattern, fullmatch=True))
    if pattern.fullmatch(text):
        assert _accepts(parse, text)


@given(text=st.from_regex(formats._CID, fullmatch=True))
def test_cid_shortcut_accepts_only_what_the_parser_accepts(text: str) -> None:
    """DM-32."""
    assert is_cid_string(text)


@pytest.mark.parametrize("name", sorted(SHORTCUTS))
def test_shortcuts_answer_for_common_texts(name: str) -> None:
    """Otherwise they would be dead weight."""
    pattern, _parse = SHORTCUTS[name]
    assert pattern.fullmatch(EXAMPLES[name][0])
