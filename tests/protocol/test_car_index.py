"""The index of a CAR that lies in a file: it knows what the reader of streams knows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.protocol import car_index
from pds.protocol.car import (
    MAX_BLOCK_BYTES,
    CarError,
    encode_car,
    encode_car_header,
    encode_varint,
    read_car,
)
from pds.protocol.car_index import CarIndex
from pds.protocol.cid import Cid
from pds.protocol.mst.tree import MissingBlock

ROOT = Cid.of_data(b"root")


def index_of(content: bytes, *, max_blocks: int = 10_000, **options: int) -> CarIndex:
    return CarIndex(lambda size, at: content[at : at + size], max_blocks=max_blocks, **options)


def pairs(*blocks: bytes) -> list[tuple[Cid, bytes]]:
    return [(Cid.of_data(block), block) for block in blocks]


def test_every_block_is_found_wherever_it_lies() -> None:
    """Many blocks, a table that is nearly full, entries over the borders of what is read."""
    blocks = [bytes([n % 251]) * (n % 700) + n.to_bytes(4) for n in range(5000)]
    blocks += [bytes(1_500_000), b"x" * 1_048_500, b""]
    found = pairs(*blocks)
    index = index_of(encode_car((ROOT,), found))
    assert index.entries == len(blocks)
    assert index.roots == (ROOT,)
    assert all(index.get(cid) == block for cid, block in found)
    with pytest.raises(MissingBlock):
        index.get(Cid.of_data(b"not there"))


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(0, 2000), st.binary(max_size=4))
@settings(max_examples=60, deadline=None)
def test_it_judges_as_the_reader_of_streams_does(blocks, cut, change) -> None:
    """(REPO-40, REPO-42)"""
    content = encode_car((ROOT,), pairs(*blocks))
    content = content[:cut] + change + content[cut + len(change) :]
    try:
        roots, known = read_car(content)
    except CarError:
        with pytest.raises(CarError):
            index_of(content)
        return
    index = index_of(content)
    assert index.roots == roots
    assert {cid: index.get(cid) for cid in known} == known


def test_a_block_that_comes_twice_counts_once() -> None:
    found = pairs(b"one", b"two", b"one", b"one")
    index = index_of(encode_car((ROOT,), found))
    assert index.entries == 4
    assert [index.get(cid) for cid, _ in found] == [b"one", b"two", b"one", b"one"]


def test_cids_whose_hashes_fall_together_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same slot and the same tag, and still another block."""
    monkeypatch.setattr(car_index, "hash", lambda _cid: 7, raising=False)
    found = pairs(*(bytes([n]) for n in range(40)))
    index = index_of(encode_car((ROOT,), found))
    assert all(index.get(cid) == block for cid, block in found)
    with pytest.raises(MissingBlock):
        index.get(Cid.of_data(b"not there"))


def test_blocks_with_an_unknown_hash_are_as_if_not_there() -> None:
    """(REPO-42)"""
    unknown = Cid(bytes([1, 0x71, 0x1E, 4, 1, 2, 3, 4]))  # blake3, four bytes of it
    index = index_of(encode_car((ROOT,), [(unknown, b"anything"), *pairs(b"one")]))
    assert index.entries == 2
    assert index.get(Cid.of_data(b"one")) == b"one"
    with pytest.raises(MissingBlock):
        index.get(unknown)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "ends in the middle"),
        (b"\x01", "ends in the middle"),
        (encode_car_header((ROOT,))[:-1], "ends in the middle"),
        (encode_car_header((ROOT,)) + b"\x05abc", "ends in the middle"),
        (encode_car_header((ROOT,)) + b"\x03abc", "without a CID"),
        (encode_car_header((ROOT,)) + b"\x00", "empty"),
        (encode_car_header((ROOT,)) + encode_varint(MAX_BLOCK_BYTES + 200), "too large"),
        (encode_varint(20_000), "too large"),
        (b"\x01\x00", "header"),
        (encode_car((ROOT,), [(ROOT, b"other")]), "does not match"),
    ],
)
def test_what_is_no_car_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(CarError, match=reason):
        index_of(content)


def test_blocks_and_bytes_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """(REPO-29)"""
    content = encode_car((ROOT,), pairs(b"one", b"two", b"three"))
    assert index_of(content, max_blocks=3).entries == 3
    with pytest.raises(CarError, match="too many blocks"):
        index_of(content, max_blocks=2)
    monkeypatch.setattr(car_index, "MAX_FILE_BYTES", 50)
    with pytest.raises(CarError, match="too large"):
        index_of(content)


def test_a_file_that_shrinks_is_noticed() -> None:
    content = encode_car((ROOT,), pairs(b"x" * 10_000))
    pieces = [content]
    index = CarIndex(lambda size, at: pieces[0][at : at + size], max_blocks=10)
    pieces[0] = content[:5000]
    with pytest.raises(CarError, match="shorter"):
        index.get(Cid.of_data(b"x" * 10_000))
