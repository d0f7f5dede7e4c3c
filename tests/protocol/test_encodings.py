"""base58btc and base64url: one text per byte string."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.protocol.encodings import (
    MAX_BASE58_CHARS,
    InvalidEncoding,
    decode_base58,
    decode_base64url,
    encode_base58,
    encode_base64url,
)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", ""),
        (b"\0", "1"),
        (b"\0\0\x01", "112"),
        (b"Hello World!", "2NEpo7TZRRrLZSi2U"),
        (bytes.fromhex("0000287fb4cd"), "11233QC4"),
    ],
)
def test_base58_known_texts(content: bytes, text: str) -> None:
    assert encode_base58(content) == text
    assert decode_base58(text) == content


@settings(max_examples=100)
@given(st.binary(max_size=80))
def test_both_encodings_round_trip_and_agree_with_the_standard_library(content: bytes) -> None:
    assert decode_base58(encode_base58(content)) == content
    expected = base64.urlsafe_b64encode(content).decode().rstrip("=")
    assert encode_base64url(content) == expected
    assert decode_base64url(expected) == content


@pytest.mark.parametrize("text", ["0", "O", "I", "l", "a b", "é", "1" * (MAX_BASE58_CHARS + 1)])
def test_base58_refuses_foreign_characters_and_long_input(text: str) -> None:
    with pytest.raises(InvalidEncoding):
        decode_base58(text)


@pytest.mark.parametrize("text", ["QQ==", "QR", "Q", "+/+/", "QU\n", " QUI", "QUJ", "é"])
def test_base64url_refuses_padding_left_over_bits_and_foreign_characters(text: str) -> None:
    with pytest.raises(InvalidEncoding):
        decode_base64url(text)
