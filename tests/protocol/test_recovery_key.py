"""The words of a rotation key: the same every time, and no wrong letter goes through."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.protocol.keys import Curve, make_signer
from pds.protocol.recovery_key import WORDS, InvalidWords, encode_words, parse_words

SECRET = bytes(range(1, 33))
K256 = (
    "dahad-bamag-bibaj-bimal-boban-bomar-bubat-bumaz-dabid-"
    "damig-dibij-dimil-dobin-domir-dubit-dumiz-fagub-rafuh"
)


def test_the_words_of_a_key_stay_the_same() -> None:
    assert encode_words(make_signer("k256", SECRET)) == K256


@given(secret=st.binary(min_size=32, max_size=32), curve=st.sampled_from(["k256", "p256"]))
@settings(max_examples=25, deadline=None)
def test_words_lead_back_to_the_key(secret: bytes, curve: Curve) -> None:
    secret = b"\x01" + secret[1:]  # Below the order of either group.
    signer = make_signer(curve, secret)
    found = parse_words(encode_words(signer))
    assert found.public_key == signer.public_key
    assert found.secret_bytes() == secret


def test_case_hyphens_and_line_breaks_do_not_matter() -> None:
    words = K256.upper().split("-")
    text = "  " + "\n".join("  ".join(words[at : at + 6]) for at in range(0, WORDS, 6)) + " \n"
    assert parse_words(text).secret_bytes() == SECRET


def test_every_wrong_letter_is_noticed() -> None:
    for at, letter in enumerate(K256):
        if letter == "-":
            continue
        letters = "aiou" if letter in "aiou" else "bdfghjklmnprstvz"
        for other in letters.replace(letter, ""):
            with pytest.raises(InvalidWords):
                parse_words(K256[:at] + other + K256[at + 1 :])


def test_words_that_are_none_missing_or_in_another_order_are_refused() -> None:
    words = K256.split("-")
    for text, reason in (
        ("", "18 words"),
        ("-".join(words[:-1]), "these are 17"),
        ("-".join([*words, words[0]]), "these are 19"),
        ("-".join([*words[:4], "hello", *words[5:]]), "word 5"),
        ("-".join([words[1], words[0], *words[2:]]), "fit together"),
    ):
        with pytest.raises(InvalidWords, match=reason):
            parse_words(text)


def test_a_newer_version_and_a_number_that_is_no_key_are_told_apart() -> None:
    from pds.protocol import recovery_key as module

    def words_of(body: bytes) -> str:
        content = body + module._checksum(body)
        pairs = [content[at : at + 2] for at in range(0, len(content), 2)]
        return "-".join(module._word(int.from_bytes(pair, "big")) for pair in pairs)

    with pytest.raises(InvalidWords, match="newer version"):
        parse_words(words_of(b"\x21" + SECRET))
    with pytest.raises(InvalidWords, match="not those of a key"):
        parse_words(words_of(b"\x11" + b"\xff" * 32))
