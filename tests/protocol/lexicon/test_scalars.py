"""Counting bytes and graphemes (LEX-28)."""

import regex
from hypothesis import given
from hypothesis import strategies as st

from pds.protocol.lexicon.scalars import Violation, count_bytes, count_graphemes

LETTERS = "a\r\né\u0301\u200d\U0001f1e9\U0001f1ea\U0001f1ff\U0001f469\U0001f3fd\ufe0f\u0600"
PIECES = st.sampled_from([*LETTERS, *"\u1100\u1161\u0915\u094d", "\r\n"])


@given(text=st.lists(PIECES, max_size=30).map("".join), limit=st.integers(0, 40))
def test_graphemes_are_those_of_the_definition(text: str, limit: int) -> None:
    """Rows of flags are counted apart, and that changes nothing up to the limit."""
    exact = len(regex.findall(r"\X", text))
    counted = count_graphemes(text, limit)
    assert counted == exact if exact <= limit else counted >= limit
    assert count_graphemes(text, 10_000) == exact


def test_graphemes_of_known_texts() -> None:
    """The samples of field notes and of the published fixture."""
    for text, count in {
        "": 0,
        "abc": 3,
        "🇩🇪🏳️‍🌈🇩🇪🏳️‍🌈": 4,
        "👩‍👩‍👦‍👦👩‍👩‍👦‍👦": 2,
        "क्षत्रिय": 3,
        "\r\n\n\r": 3,
        "e\u0301": 1,
        "각": 1,
    }.items():
        assert count_graphemes(text, 1000) == count


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_are_those_of_utf_8(text: str) -> None:
    """LEX-28."""
    assert count_bytes(text) == len(text.encode())


def test_lone_surrogates_are_counted_not_a_crash() -> None:
    """They cannot come from JSON or CBOR, but a check must not raise anything unexpected."""
    assert count_bytes("\ud800") == 3


def test_place_of_a_violation_reads_from_the_outside_in() -> None:
    """LEX-35."""
    violation = Violation("is wrong")
    violation.steps += ["c", 0, "a"]
    assert violation.path("record") == "record/a/0/c"
    assert Violation("is wrong").path("record") == "record"
