"""The words in which people keep a rotation key: made for paper, and for typing in again.

A key of 32 bytes becomes 18 words of five letters, consonants and vowels in turn. Each word is 16
bits, read as consonant (4 bits), vowel (2), consonant, vowel, consonant:

    consonants  b d f g h j k l m n p r s t v z    vowels  a i o u

The 36 bytes are: one for version and curve, 32 of the key, and 3 of a checksum (SHA-256 of all
that comes before, behind a fixed text). A wrong letter goes unnoticed in one case of 16 million,
and no list of words is needed to read them. Case, hyphens and line breaks do not matter.

The curve byte is 0x11 for K-256 and 0x12 for P-256; another version will have another byte.
"""

import hashlib
import re
from typing import Final

from pds.errors import ProtocolError
from pds.protocol.keys import SECRET_BYTES, Curve, InvalidKey, Signer, make_signer

WORDS: Final = 18

_CONSONANTS: Final = "bdfghjklmnprstvz"
_VOWELS: Final = "aiou"
_CURVE_BYTES: Final[dict[Curve, int]] = {"k256": 0x11, "p256": 0x12}
_CHECKED: Final = b"freehold rotation key"
_CHECKSUM_BYTES: Final = 3
_WORD: Final = re.compile(f"([{_CONSONANTS}][{_VOWELS}]){{2}}[{_CONSONANTS}]")
_BETWEEN: Final = re.compile(r"[\s,.\-]+")


class InvalidWords(ProtocolError):
    """Words that are not those of a key; the message says where, and never quotes them."""


def encode_words(signer: Signer) -> str:
    """Return the words of a private key, with hyphens between them."""
    content = bytes((_CURVE_BYTES[signer.public_key.curve],)) + signer.secret_bytes()
    content += _checksum(content)
    pairs = (content[at : at + 2] for at in range(0, len(content), 2))
    return "-".join(_word(int.from_bytes(pair, "big")) for pair in pairs)


def parse_words(text: str) -> Signer:
    """Read the words of a private key. Raises: InvalidWords."""
    words = [word for word in _BETWEEN.split(text.lower()) if word]
    for number, word in enumerate(words, 1):
        if not _WORD.fullmatch(word):
            raise InvalidWords(f"word {number} is not one of a key: look at its letters")
    if len(words) != WORDS:
        raise InvalidWords(f"a key has {WORDS} words, these are {len(words)}")
    content = b"".join(_number(word).to_bytes(2, "big") for word in words)
    body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if _checksum(body) != checksum:
        raise InvalidWords("the words do not fit together: one letter or the order is wrong")
    curves = {number: curve for curve, number in _CURVE_BYTES.items()}
    curve = curves.get(body[0])
    if curve is None or len(body) != 1 + SECRET_BYTES:
        raise InvalidWords("the words are those of a newer version")
    try:
        return make_signer(curve, body[1:])
    except InvalidKey as error:
        raise InvalidWords("the words are not those of a key") from error


def _word(number: int) -> str:
    return (
        _CONSONANTS[number >> 12]
        + _VOWELS[number >> 10 & 3]
        + _CONSONANTS[number >> 6 & 15]
        + _VOWELS[number >> 4 & 3]
        + _CONSONANTS[number & 15]
    )


def _number(word: str) -> int:
    first, second, third = (_CONSONANTS.index(word[at]) for at in (0, 2, 4))
    high, low = _VOWELS.index(word[1]), _VOWELS.index(word[3])
    return first << 12 | high << 10 | second << 6 | low << 4 | third


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(_CHECKED + content).digest()[:_CHECKSUM_BYTES]
