"""What is in a repo that somebody else hosts: counted from its CAR, without taking it in.

For the dry run: records by type, blobs and their bytes as the records state them. Nothing is
verified here but the hash of each block; what is counted is shown to people and believed by
nobody. A survey that takes too long, or meets more than it can count, says so.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from pds.protocol import cbor
from pds.protocol.car import CarReader
from pds.protocol.cid import Cid
from pds.protocol.data import Json

MAX_COUNTED_BLOBS: Final = 1_000_000
MAX_TYPES: Final = 200
OTHER: Final = "other"


@dataclass(slots=True)
class Survey:
    """What was found so far."""

    records: Counter[str] = field(default_factory=Counter)
    blobs: dict[Cid, int] = field(default_factory=dict)
    blob_bytes: int = 0
    repo_bytes: int = 0
    is_complete: bool = False

    def to_json(self) -> dict[str, Json]:
        """Return it for people."""
        return {
            "records": sum(self.records.values()),
            "recordsByType": dict(self.records.most_common()),
            "blobs": len(self.blobs),
            "blobBytes": self.blob_bytes,
            "largestBlob": max(self.blobs.values(), default=0),
            "repoBytes": self.repo_bytes,
            "isComplete": self.is_complete,
        }


class Surveyor:
    """Counts a CAR that comes in chunks."""

    def __init__(self, *, max_bytes: int) -> None:
        self.found = Survey()
        self._reader = CarReader(max_bytes=max_bytes)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Raises: CarError."""
        self.found.repo_bytes += len(chunk)
        for _, block in self._reader.feed(chunk):
            try:
                value = cbor.decode(block)
            except cbor.CborError:
                continue  # Not counted; the import says what is wrong with it.
            if isinstance(value, dict) and isinstance(value.get("$type"), str):
                self._count(value)

    def finish(self) -> None:
        """Check that the CAR is whole. Raises: CarError."""
        self._reader.finish()
        self.found.is_complete = True

    def _count(self, record: dict[str, Any]) -> None:
        kind = record["$type"][:200]
        is_known = kind in self.found.records or len(self.found.records) < MAX_TYPES
        is_known = is_known and kind.isascii() and kind.isprintable()  # As all types are.
        self.found.records[kind if is_known else OTHER] += 1
        open_values: list[Any] = [record]
        while open_values:
            value = open_values.pop()
            if isinstance(value, list):
                open_values.extend(value)
            elif isinstance(value, dict):
                if value.get("$type") == "blob":
                    self._count_blob(value)
                else:
                    open_values.extend(value.values())

    def _count_blob(self, value: dict[str, Any]) -> None:
        cid, size = value.get("ref"), value.get("size")
        if isinstance(cid, Cid) and type(size) is int and size >= 0:
            found = self.found
            if cid not in found.blobs and len(found.blobs) < MAX_COUNTED_BLOBS:
                found.blobs[cid] = size
                found.blob_bytes += size
