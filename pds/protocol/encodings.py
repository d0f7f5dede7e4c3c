"""Two text encodings that the protocol uses for keys and signatures: base58btc and base64url.

Both decoders are strict: one byte string has exactly one text. Base58 is quadratic in its input,
so the decoder takes short inputs only.
"""

import base64
import binascii
import re
from typing import Final

from pds.errors import ProtocolError

MAX_BASE58_CHARS: Final = 256
"""Longest base58 text that is decoded; the longest allowed key of a PLC operation (ID-59)."""

_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGITS: Final = {char: at for at, char in enumerate(_ALPHABET)}
_BASE58_TEXT: Final = re.compile(f"[{_ALPHABET}]*", re.ASCII)
_BASE64URL_TEXT: Final = re.compile("[A-Za-z0-9_-]*", re.ASCII)


class InvalidEncoding(ProtocolError):
    """Text that is not base58btc or base64url in its one canonical form."""


def encode_base58(content: bytes) -> str:
    """Encode bytes in base58btc, without a multibase prefix."""
    zeros = len(content) - len(content.lstrip(b"\0"))
    number = int.from_bytes(content, "big")
    digits: list[str] = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_ALPHABET[digit])
    return "1" * zeros + "".join(reversed(digits))


def decode_base58(text: str) -> bytes:
    """Decode base58btc of at most `MAX_BASE58_CHARS` characters, without a multibase prefix.

    Raises: InvalidEncoding.
    """
    if len(text) > MAX_BASE58_CHARS or not _BASE58_TEXT.fullmatch(text):
        raise InvalidEncoding("not base58btc, or too long")
    number = 0
    for char in text:
        number = number * 58 + _DIGITS[char]
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def encode_base64url(content: bytes) -> str:
    """Encode bytes in base64url without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")


def decode_base64url(text: str) -> bytes:
    """Decode base64url; padding, foreign characters and non-zero left-over bits are refused.

    Raises: InvalidEncoding. Spec: (ID-52, XRPC-40)
    """
    if not _BASE64URL_TEXT.fullmatch(text):
        raise InvalidEncoding("not base64url without padding")
    try:
        content = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise InvalidEncoding("base64url of an impossible length") from error
    if len(text) % 4 and encode_base64url(content) != text:
        raise InvalidEncoding("base64url with left-over bits that are not zero")
    return content
