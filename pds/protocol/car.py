"""CAR version 1: a list of blocks in a row, as exports, imports and commits carry them.

Layout: `varint(n) header varint(n) (CID block) varint(n) (CID block) ...`. Every block is hashed
against its CID when it is read (REPO-42); order, repetition and unrelated blocks do not matter.

`CarReader` is a push parser: it holds at most one unfinished block, so an import of any size runs
in bounded memory. Blocks whose CID uses a hash that we cannot compute are left out of the result,
as if they were not there: nothing unverified comes out of this module.

Spec: repository#car-file-serialization (REPO-40, REPO-41, REPO-42)
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256, sha512
from typing import Final

from pds.errors import ProtocolError
from pds.protocol import cbor
from pds.protocol.cid import MAX_CID_BYTES, SHA_256, Cid, InvalidCid, read_cid

MEDIA_TYPE: Final = "application/vnd.ipld.car"
MAX_HEADER_BYTES: Final = 10_000
"""Longest header. Ours: one root takes 58 bytes, and nothing gives meaning to a second."""
MAX_BLOCK_BYTES: Final = 2_000_000
"""Longest block. Records have at most 1,000,000; a foreign tree node may be wide."""

_MAX_VARINT_BYTES: Final = 9
_SHA_512: Final = 0x13


class CarError(ProtocolError):
    """Bytes that are not a CAR, a block that does not match its CID, or a limit passed."""


def encode_varint(number: int) -> bytes:
    """Return `number` as unsigned LEB128."""
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode_car_header(roots: Sequence[Cid]) -> bytes:
    """Return the start of a CAR with these roots, length included."""
    header = cbor.encode_trusted({"roots": list(roots), "version": 1})
    return encode_varint(len(header)) + header


def encode_car_block(cid: Cid, block: bytes) -> bytes:
    """Return one entry of a CAR. Trusts that `cid` is the CID of `block`."""
    return encode_varint(len(cid) + len(block)) + cid + block


def encode_car(roots: Sequence[Cid], blocks: Iterable[tuple[Cid, bytes]]) -> bytes:
    """Return a whole CAR with the blocks in the given order."""
    parts = [encode_car_header(roots)]
    for cid, block in blocks:
        parts += (encode_varint(len(cid) + len(block)), cid, block)
    return b"".join(parts)


class CarReader:
    """Parses a CAR that comes in chunks.

    `max_bytes` and `max_blocks` bound the whole file, `max_block_bytes` one block; None is no bound
    where the caller counts itself. After an error the reader must not be used again.
    """

    def __init__(
        self,
        *,
        max_block_bytes: int = MAX_BLOCK_BYTES,
        max_bytes: int | None = None,
        max_blocks: int | None = None,
    ) -> None:
        self._buffer = bytearray()
        self._roots: tuple[Cid, ...] | None = None
        self._max_block_bytes = max_block_bytes
        self._max_bytes = max_bytes
        self._max_blocks = max_blocks
        self._bytes = 0
        self._blocks = 0

    @property
    def roots(self) -> tuple[Cid, ...]:
        """The roots, once the header was fed.

        Raises: CarError before that.
        """
        if self._roots is None:
            raise CarError("the header of the CAR is not complete")
        return self._roots

    @property
    def has_header(self) -> bool:
        """Whether the header was read, so that `roots` is known."""
        return self._roots is not None

    def feed(self, chunk: bytes) -> list[tuple[Cid, bytes]]:
        """Take the next bytes and return the blocks that they complete, each verified.

        Raises: CarError.
        """
        self._bytes += len(chunk)
        if self._max_bytes is not None and self._bytes > self._max_bytes:
            raise CarError("CAR too large")
        self._buffer += chunk
        buffer, at = self._buffer, 0
        found: list[tuple[Cid, bytes]] = []
        while True:
            in_header = self._roots is None
            limit = MAX_HEADER_BYTES if in_header else self._max_block_bytes + MAX_CID_BYTES
            entry = find_entry(buffer, at, limit)
            if entry is None:
                break
            start, end = entry
            if in_header:
                self._roots = decode_header(bytes(buffer[start:end]))
            else:
                self._count_block()
                self._read_block(bytes(buffer[start:end]), found)
            at = end
        del buffer[:at]
        return found

    def finish(self) -> None:
        """Check that the input ended at the end of a block.

        Raises: CarError.
        """
        if self._roots is None or self._buffer:
            raise CarError("the CAR ends in the middle")

    def _count_block(self) -> None:
        self._blocks += 1
        if self._max_blocks is not None and self._blocks > self._max_blocks:
            raise CarError("too many blocks in the CAR")

    def _read_block(self, entry: bytes, found: list[tuple[Cid, bytes]]) -> None:
        try:
            cid, end = read_cid(entry)
        except InvalidCid as error:
            raise CarError(f"CAR entry without a CID: {error}") from error
        if len(entry) - end > self._max_block_bytes:
            raise CarError("block too large")
        block = entry[end:]
        if is_verified(cid, block):
            found.append((cid, block))


def read_car(content: bytes) -> tuple[tuple[Cid, ...], dict[Cid, bytes]]:
    """Read a CAR that is in memory: its roots and its blocks.

    Raises: CarError.
    """
    reader = CarReader()
    blocks = dict(reader.feed(content))
    reader.finish()
    return reader.roots, blocks


def find_entry(buffer: bytes | bytearray, at: int, limit: int) -> tuple[int, int] | None:
    """Return where the entry at `at` starts and ends, or None when it is not complete yet.

    Raises: CarError.
    """
    length = shift = 0
    size = len(buffer)
    start = at
    while True:
        if start >= size:
            return None
        byte = buffer[start]
        start += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift >= 7 * _MAX_VARINT_BYTES:
            raise CarError("length of a CAR entry has too many bytes")
    if byte == 0 and shift:
        raise CarError("length of a CAR entry is not in its shortest form")
    if length > limit:
        raise CarError("CAR entry too large")
    if length == 0:
        raise CarError("empty CAR entry")
    end = start + length
    return (start, end) if end <= size else None


def decode_header(content: bytes) -> tuple[Cid, ...]:
    """Return the roots that a header names. Raises: CarError."""
    try:
        header = cbor.decode(content)
    except cbor.CborError as error:
        raise CarError(f"bad CAR header: {error}") from error
    if type(header) is not dict or type(header.get("version")) is not int:
        raise CarError("bad CAR header")
    if header["version"] != 1:
        raise CarError("only CAR version 1 is supported")
    roots = header.get("roots")
    if type(roots) is not list:
        raise CarError("bad CAR header: roots")
    links = [root for root in roots if type(root) is Cid]
    if len(links) != len(roots):
        raise CarError("bad CAR header: a root is not a link")
    return tuple(links)


def is_verified(cid: Cid, block: bytes) -> bool:
    """Whether `block` hashes to `cid`; False when the hash function is not known here.

    Raises: CarError when the hash differs.
    """
    code = cid.hash_code
    if code == SHA_256:
        expected, digest = cid[-32:], sha256(block).digest()
    elif code == _SHA_512:
        expected, digest = cid[-64:], sha512(block).digest()
    else:
        return False
    if expected != digest:
        raise CarError(f"block does not match its CID {cid}")
    return True
