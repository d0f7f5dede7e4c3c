"""A CAR that lies somewhere whole, as a source of its blocks: in any order, in little memory.

An import has to follow the tree, and the CARs of other hosts come in whatever order they keep their
rows in. So the file is read through once to count its entries, once more to check them and to note
where each block is, and then block by block. The notes are one table of 64-bit numbers with open
addressing: 8 bytes a slot, at least two slots for three blocks, so 4 million blocks take 64 MB.
A slot holds the place of the entry in its upper 40 bits and 24 bits of its hash; whether an entry
is the right one is seen in the file. The hash is Python's, seeded anew in each process: nobody can
send CIDs that all fall together.

Spec: repository#car-file-serialization (REPO-40, REPO-41, REPO-42)
"""

from array import array
from collections.abc import Callable, Iterator
from typing import Final, final

from pds.protocol.car import (
    MAX_BLOCK_BYTES,
    MAX_HEADER_BYTES,
    CarError,
    decode_header,
    find_entry,
    is_verified,
)
from pds.protocol.cid import MAX_CID_BYTES, Cid, InvalidCid, read_cid
from pds.protocol.mst.tree import MissingBlock

ReadAt = Callable[[int, int], bytes]
"""Returns up to so many bytes from a place in the file; none at its end."""

WINDOW_BYTES: Final = 1 << 20
USUAL_ENTRY_BYTES: Final = 4096
"""Read at once for one block; larger ones take a second read."""
MAX_FILE_BYTES: Final = 1 << 40

_TAG_BITS: Final = 24
_TAG_MASK: Final = (1 << _TAG_BITS) - 1
_TAG_SHIFT: Final = 40
_MAX_PREFIX_BYTES: Final = 9
_MIN_SLOTS: Final = 64


@final
class CarIndex:
    """The blocks of a CAR file, each hashed against its CID before it is known.

    A block that comes twice counts once; one whose hash function is not known here does not count.
    """

    def __init__(
        self, read_at: ReadAt, *, max_blocks: int, max_block_bytes: int = MAX_BLOCK_BYTES
    ) -> None:
        """Read the whole file twice. Raises: CarError for a malformed or too large one."""
        self._read_at = read_at
        self._max_entry_bytes = max_block_bytes + MAX_CID_BYTES
        self.roots: tuple[Cid, ...] = ()
        self.entries = self._count(max_blocks)
        slots = _MIN_SLOTS
        while slots * 2 < self.entries * 3:
            slots *= 2
        self._mask = slots - 1
        self._table = array("Q", bytes(8 * slots))
        self._fill()

    def get(self, cid: Cid) -> bytes:
        """Return the bytes of a block. Raises: MissingBlock."""
        table, mask = self._table, self._mask
        number = hash(cid)
        tag = number >> _TAG_SHIFT & _TAG_MASK
        slot = number & mask
        while entry := table[slot]:
            if entry & _TAG_MASK == tag:
                block = self._read_block((entry >> _TAG_BITS) - 1, cid)
                if block is not None:
                    return block
            slot = slot + 1 & mask
        raise MissingBlock(cid)

    def _count(self, max_blocks: int) -> int:
        count = -1  # The header is an entry, too.
        for _ in self._scan():
            count += 1
            if count > max_blocks:
                raise CarError("too many blocks in the CAR")
        return count

    def _fill(self) -> None:
        table, mask = self._table, self._mask
        entries = self._scan()
        _, header = next(entries)
        self.roots = decode_header(header())
        for place, read in entries:
            entry = read()
            try:
                cid, end = read_cid(entry)
            except InvalidCid as error:
                raise CarError(f"CAR entry without a CID: {error}") from error
            if not is_verified(cid, entry[end:]):
                continue
            number = hash(cid)
            tag = number >> _TAG_SHIFT & _TAG_MASK
            slot = number & mask
            while known := table[slot]:
                if (
                    known & _TAG_MASK == tag
                    and self._read_block((known >> _TAG_BITS) - 1, cid) is not None
                ):
                    break
                slot = slot + 1 & mask
            else:
                table[slot] = (place + 1) << _TAG_BITS | tag

    def _scan(self) -> Iterator[tuple[int, Callable[[], bytes]]]:
        """Yield the place of each entry, length included, and a function that returns its bytes.

        The header comes first. The function is good until the next step.
        """
        buffer = bytearray()
        begin = 0  # where in the file the buffer begins
        limit = MAX_HEADER_BYTES
        is_header_read = False
        while chunk := self._read_at(WINDOW_BYTES, begin + len(buffer)):
            buffer += chunk
            if begin + len(buffer) >= MAX_FILE_BYTES:
                raise CarError("CAR too large")
            at = 0
            while (found := find_entry(buffer, at, limit)) is not None:
                start, end = found
                yield begin + at, lambda: bytes(buffer[start:end])  # noqa: B023 - see above
                at, limit, is_header_read = end, self._max_entry_bytes, True
            del buffer[:at]
            begin += at
        if buffer or not is_header_read:
            raise CarError("the CAR ends in the middle")

    def _read_block(self, place: int, cid: Cid) -> bytes | None:
        """Return the block of the entry at `place` if it is the one with this CID."""
        content = self._read_at(USUAL_ENTRY_BYTES, place)
        found = find_entry(content, 0, self._max_entry_bytes)
        if found is None:
            content = self._read_at(self._max_entry_bytes + _MAX_PREFIX_BYTES, place)
            found = find_entry(content, 0, self._max_entry_bytes)
            if found is None:  # It was whole when it was counted.
                raise CarError("the CAR has become shorter")
        start, end = found
        first = start + len(cid)
        return content[first:end] if content[start:first] == cid else None
