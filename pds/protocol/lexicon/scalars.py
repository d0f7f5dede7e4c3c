"""Checks for booleans, integers and strings, which look the same in every encoding.

A *check* is a function of a value and its nesting depth that returns nothing or raises
`Violation`. Checks are built once per definition and run millions of times, so every question
that the schema alone can answer is answered while building.
"""

import re
from collections.abc import Callable
from itertools import islice
from typing import Final

import regex

from pds.protocol.lexicon.definitions import BooleanDef, IntegerDef, StringDef
from pds.protocol.lexicon.formats import FORMATS

Check = Callable[[object, int], None]
"""Checks a value that stands at a nesting depth."""

MAX_INTEGER: Final = 2**53 - 1
"""Largest integer that every implementation reads exactly (DM-3)."""

_SHOWN_CHOICES: Final = 20
_MAX_UTF8_BYTES: Final = 4
_graphemes: Final = regex.compile(r"\X")
_flag_letters: Final = re.compile("[\U0001f1e6-\U0001f1ff]{3,}")


class Violation(Exception):
    """A value breaks its schema; `steps` lead to it, innermost first."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.steps: list[str | int] = []

    def path(self, root: str) -> str:
        """Return the place as `root/name/0/name`."""
        return "/".join([root, *(str(step) for step in reversed(self.steps))])


def count_graphemes(text: str, limit: int) -> int:
    """Count extended grapheme clusters, giving up at `limit` or a little above (LEX-28).

    Takes time in proportion to the text. `\\X` alone does not: in a row of regional indicators,
    two of which make a flag, it goes back to the start of the row for every flag (a megabyte of
    them took 168 s). So all flags of a row but the last are counted here and left out.
    """
    if text.isascii():
        return min(len(text) - text.count("\r\n"), limit)
    flags = 0

    def keep_last_flag(row: re.Match[str]) -> str:
        nonlocal flags
        others = (len(row[0]) - 1) // 2
        flags += others
        return row[0][2 * others :]

    text = _flag_letters.sub(keep_last_flag, text)
    return flags + sum(1 for _ in islice(_graphemes.finditer(text), limit))


def count_bytes(text: str) -> int:
    """Count the UTF-8 bytes of a text (LEX-28)."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def boolean_check(definition: BooleanDef) -> Check:
    """Build the check of a boolean; the integers 0 and 1 are not booleans."""
    const = definition.const

    def check(value: object, _depth: int) -> None:
        if value is not True and value is not False:
            raise Violation("must be a boolean")
        if const is not None and value is not const:
            raise Violation(f"must be {str(const).lower()}")

    return check


def integer_check(definition: IntegerDef) -> Check:
    """Build the check of an integer; booleans and numbers beyond 53 bits are not integers."""
    lowest = -MAX_INTEGER if definition.minimum is None else definition.minimum
    highest = MAX_INTEGER if definition.maximum is None else definition.maximum
    const = definition.const
    enum = None if definition.enum is None else frozenset(definition.enum)
    has_choice = const is not None or enum is not None

    def check(value: object, _depth: int) -> None:
        if type(value) is not int:
            raise Violation("must be an integer")
        if not lowest <= value <= highest:
            if value < lowest:
                raise Violation(f"is too small (minimum {lowest})")
            raise Violation(f"is too big (maximum {highest})")
        if has_choice:
            if const is not None and value != const:
                raise Violation(f"must be {const}")
            if enum is not None and value not in enum:
                raise Violation(_choices_message(definition.enum))

    return check


def string_check(definition: StringDef) -> Check:
    """Build the check of a string: format, lengths and closed choices."""
    tests = [
        test
        for build in (_format_test, _bytes_test, _graphemes_test, _choice_test)
        if (test := build(definition)) is not None
    ]
    if not tests:
        return check_text
    if len(tests) == 1:
        (only,) = tests

        def check_one(value: object, _depth: int) -> None:
            if type(value) is not str:
                raise Violation("must be a string")
            only(value)

        return check_one

    def check_all(value: object, _depth: int) -> None:
        if type(value) is not str:
            raise Violation("must be a string")
        for test in tests:
            test(value)

    return check_all


def check_text(value: object, _depth: int) -> None:
    """Check a string without constraints."""
    if type(value) is not str:
        raise Violation("must be a string")


def _format_test(definition: StringDef) -> Callable[[str], None] | None:
    if definition.format is None:
        return None
    has_format = FORMATS[definition.format]
    message = f"must have the format {definition.format}"

    def test(text: str) -> None:
        if not has_format(text):
            raise Violation(message)

    return test


def _bytes_test(definition: StringDef) -> Callable[[str], None] | None:
    minimum, maximum = definition.min_length, definition.max_length
    if minimum is None and maximum is None:
        return None
    lowest = minimum or 0
    # No text of so many characters can break the limit, whatever they are.
    surely_fits = MAX_INTEGER if maximum is None else maximum // _MAX_UTF8_BYTES

    def test(text: str) -> None:
        length = len(text)
        if lowest <= length <= surely_fits:
            return
        if maximum is not None and (length > maximum or count_bytes(text) > maximum):
            raise Violation(f"is too long (maximum {maximum} bytes)")
        if length < lowest and count_bytes(text) < lowest:
            raise Violation(f"is too short (minimum {lowest} bytes)")

    return test


def _graphemes_test(definition: StringDef) -> Callable[[str], None] | None:
    minimum, maximum = definition.min_graphemes, definition.max_graphemes
    if minimum is None and maximum is None:
        return None
    lowest = minimum or 0
    highest = MAX_INTEGER if maximum is None else maximum

    def test(text: str) -> None:
        length = len(text)
        if length < lowest:
            raise Violation(f"is too short (minimum {lowest} graphemes)")
        if length > highest and count_graphemes(text, highest + 1) > highest:
            raise Violation(f"is too long (maximum {highest} graphemes)")
        if lowest and count_graphemes(text, lowest) < lowest:
            raise Violation(f"is too short (minimum {lowest} graphemes)")

    return test


def _choice_test(definition: StringDef) -> Callable[[str], None] | None:
    const = definition.const
    enum = None if definition.enum is None else frozenset(definition.enum)
    if const is None and enum is None:
        return None

    def test(text: str) -> None:
        if const is not None and text != const:
            raise Violation(f"must be {const!r}")
        if enum is not None and text not in enum:
            raise Violation(_choices_message(definition.enum))

    return test


def _choices_message(choices: tuple[object, ...] | None) -> str:
    choices = choices or ()
    shown = ", ".join(repr(choice) for choice in choices[:_SHOWN_CHOICES])
    return f"must be one of {shown}" + (", ..." if len(choices) > _SHOWN_CHOICES else "")
