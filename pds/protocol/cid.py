"""Content identifiers (CIDs): the address of a block by its hash.

A `Cid` is the binary form, a `bytes` subclass, so it hashes, compares and sorts as bytes and can
be bound to SQL as it is. The text form (base32, prefix `b`) is made on demand by `str()`.

*Blessed* means the one form that this network writes: version 1, codec dag-cbor (0x71) for data or
raw (0x55) for blobs, sha-256 with 32 bytes: 36 bytes in all.
"""

import base64
from hashlib import sha256
from typing import Final, Self

from pds.errors import ProtocolError

DAG_CBOR: Final = 0x71
RAW: Final = 0x55
SHA_256: Final = 0x12

BLESSED_CID_BYTES: Final = 36
MAX_CID_BYTES: Final = 100
"""Longest binary CID that we read (DM-13)."""

_DAG_CBOR_PREFIX: Final = bytes([1, DAG_CBOR, SHA_256, 32])
_RAW_PREFIX: Final = bytes([1, RAW, SHA_256, 32])

_BASE32: Final = "abcdefghijklmnopqrstuvwxyz234567"
_LETTER_PAIRS: Final = tuple(high + low for high in _BASE32 for low in _BASE32)
_PAIR_SHIFTS: Final = tuple(range(280, -1, -10))
"""A blessed CID is written as 29 pairs of letters of ten bits each, the last two bits being zero:
half the time of the standard library."""


class InvalidCid(ProtocolError):
    """Not a CID, or not of the demanded kind."""


class Cid(bytes):
    """A binary CID. Make one with the functions of this module, which check it."""

    __slots__ = ()

    def __str__(self) -> str:
        if len(self) != BLESSED_CID_BYTES:
            return "b" + base64.b32encode(self).decode("ascii").lower().rstrip("=")
        number = int.from_bytes(self, "big") << 2
        return "b" + "".join([_LETTER_PAIRS[number >> shift & 1023] for shift in _PAIR_SHIFTS])

    def __repr__(self) -> str:
        return f"Cid({self})"

    @property
    def codec(self) -> int:
        """The multicodec of the content (`DAG_CBOR`, `RAW` or another)."""
        return _read_varint(self, 1)[0]

    @property
    def hash_code(self) -> int:
        """The multihash code: `SHA_256` or another."""
        return _read_varint(self, _read_varint(self, 1)[1])[0]

    @property
    def digest(self) -> bytes:
        """The 32 hash bytes of a blessed CID."""
        return self[4:]

    @property
    def is_blessed(self) -> bool:
        """Whether this is CIDv1, dag-cbor or raw, sha-256 (DM-30)."""
        return len(self) == BLESSED_CID_BYTES and self[:4] in (_DAG_CBOR_PREFIX, _RAW_PREFIX)

    @property
    def is_blessed_data(self) -> bool:
        """Whether this is a blessed CID of dag-cbor data."""
        return len(self) == BLESSED_CID_BYTES and self[:4] == _DAG_CBOR_PREFIX

    @property
    def is_blessed_raw(self) -> bool:
        """Whether this is a blessed CID of raw bytes (a blob)."""
        return len(self) == BLESSED_CID_BYTES and self[:4] == _RAW_PREFIX

    @classmethod
    def of_data(cls, block: bytes) -> Self:
        """Return the CID of an encoded dag-cbor block: record, tree node (REPO-27) or commit."""
        return cls(_DAG_CBOR_PREFIX + sha256(block).digest())

    @classmethod
    def of_raw(cls, content: bytes) -> Self:
        """Return the CID of raw bytes, as blobs have; the empty blob is one, too (DM-34)."""
        return cls(_RAW_PREFIX + sha256(content).digest())

    @classmethod
    def of_raw_digest(cls, digest: bytes) -> Self:
        """Return the raw CID for a sha-256 digest computed while streaming."""
        if len(digest) != 32:
            raise InvalidCid("a sha-256 digest has 32 bytes")
        return cls(_RAW_PREFIX + digest)


def decode_cid(content: bytes) -> Cid:
    """Check the structure of a binary CID (any codec and hash) and return it.

    Raises: InvalidCid for version 0, trailing bytes, bad lengths or more than `MAX_CID_BYTES`.
    Spec: data-model#link-and-cid-formats
    """
    if len(content) == BLESSED_CID_BYTES and content[:4] in (_DAG_CBOR_PREFIX, _RAW_PREFIX):
        return Cid(content)
    if _cid_end(content) != len(content):
        raise InvalidCid("bytes after the end of the CID")
    return Cid(content)


def parse_cid(text: str) -> Cid:
    """Parse the base32 text form (prefix `b`) of a version 1 CID.

    Raises: InvalidCid. Upper case, padding and non-zero left-over bits are refused, so that one
    CID has one text. Spec: data-model#link-and-cid-formats
    """
    if text[:1] != "b" or not 1 < len(text) <= 2 * MAX_CID_BYTES:
        raise InvalidCid("a CID is written in base32 with the prefix b")
    try:
        # Python reads base 32 in the alphabet 0-9a-v; the table makes all else unreadable.
        number = int(text[1:].encode("ascii").translate(_TO_PYTHON_BASE32), 32)
    except ValueError as error:
        raise InvalidCid("a CID is written in base32") from error
    size, left_over = divmod(5 * (len(text) - 1), 8)
    if left_over >= 5 or number & ((1 << left_over) - 1):
        raise InvalidCid("CID text is not in its canonical form")
    return decode_cid((number >> left_over).to_bytes(size, "big"))


def _python_base32_table() -> bytes:
    table = bytearray(b"!" * 256)
    for value, letter in enumerate(_BASE32.encode()):
        table[letter] = b"0123456789abcdefghijklmnopqrstuv"[value]
    return bytes(table)


_TO_PYTHON_BASE32: Final = _python_base32_table()


def read_cid(content: bytes) -> tuple[Cid, int]:
    """Read the CID at the start of `content`; return it and the position behind it.

    Raises: InvalidCid.
    """
    if content[:4] in (_DAG_CBOR_PREFIX, _RAW_PREFIX) and len(content) >= BLESSED_CID_BYTES:
        return Cid(content[:BLESSED_CID_BYTES]), BLESSED_CID_BYTES
    end = _cid_end(content)
    return Cid(content[:end]), end


def _cid_end(content: bytes) -> int:
    """Check the structure of the CID at the start of `content` and return where it ends."""
    if content[:1] != b"\x01":
        raise InvalidCid("only CID version 1 is supported")
    at = 1
    for _number in range(2):  # codec, hash
        _value, at = _read_varint(content, at)
    length, at = _read_varint(content, at)
    end = at + length
    if length == 0 or end > len(content):
        raise InvalidCid("CID digest has the wrong length")
    if end > MAX_CID_BYTES:
        raise InvalidCid("CID too long")
    return end


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    if at < len(content) and content[at] < 0x80:
        return content[at], at + 1
    value = shift = 0
    while True:
        if at >= len(content) or shift > 56:
            raise InvalidCid("truncated CID")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0:
                raise InvalidCid("CID number is not minimal")
            return value, at
        shift += 7
