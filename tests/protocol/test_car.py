"""CAR files: round trips in any chunks, every block checked, every limit kept.

Spec: REPO-40, REPO-41, REPO-42.
"""

from hashlib import sha256, sha512

import libipld
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.protocol import cbor
from pds.protocol.car import (
    MAX_HEADER_BYTES,
    CarError,
    CarReader,
    encode_car,
    encode_car_block,
    encode_car_header,
    encode_varint,
    read_car,
)
from pds.protocol.cid import Cid
from tests.support import load_vectors

block_lists = st.lists(st.binary(max_size=300).map(lambda b: (Cid.of_data(b), b)), max_size=6)
ROOT = Cid.of_data(b"root")
ONE, TWO = (Cid.of_data(b"one"), b"one"), (Cid.of_raw(b"two"), b"two")


def entry(content: bytes) -> bytes:
    return encode_varint(len(content)) + content


def test_vectors() -> None:
    for vector in load_vectors("car.json")["valid"]:
        content = bytes.fromhex(vector["hex"])
        roots, blocks = read_car(content)
        assert [str(root) for root in roots] == vector["roots"]
        assert [[str(cid), block.hex()] for cid, block in blocks.items()] == vector["blocks"]


@pytest.mark.parametrize("vector", load_vectors("car.json")["invalid"], ids=lambda v: v["why"])
def test_a_bad_car_is_refused_whole_and_byte_by_byte(vector: dict[str, str]) -> None:
    content = bytes.fromhex(vector["hex"])
    with pytest.raises(CarError):
        read_car(content)
    reader = CarReader()
    with pytest.raises(CarError):
        for byte in content:
            reader.feed(bytes([byte]))
        reader.finish()
        pytest.fail("accepted")


@given(st.lists(st.binary(max_size=5).map(Cid.of_data), max_size=3), block_lists, st.data())
def test_what_is_written_is_read_in_any_chunks(
    roots: list[Cid], blocks: list[tuple[Cid, bytes]], data: st.DataObject
) -> None:
    content = encode_car(roots, blocks)
    reader, found, at = CarReader(), [], 0
    while at < len(content):
        step = data.draw(st.integers(1, 400))
        found += reader.feed(content[at : at + step])
        at += step
    reader.finish()
    assert reader.roots == tuple(roots)
    assert found == blocks
    assert read_car(content) == (tuple(roots), dict(blocks))
    parts = encode_car_header(roots) + b"".join(encode_car_block(*block) for block in blocks)
    assert parts == content


@given(
    st.lists(st.binary(max_size=50).map(lambda b: (Cid.of_data(cbor.encode(b)), cbor.encode(b))))
)
def test_an_independent_reader_agrees(blocks: list[tuple[Cid, bytes]]) -> None:
    header, found = libipld.decode_car(encode_car([ROOT], blocks))
    assert header == {"roots": [bytes(ROOT)], "version": 1}
    assert set(found) == {bytes(cid) for cid, _block in blocks}


@settings(max_examples=200)
@given(block_lists.filter(bool), st.data())
def test_a_damaged_car_never_yields_a_block_that_does_not_match(
    blocks: list[tuple[Cid, bytes]], data: st.DataObject
) -> None:
    content = bytearray(encode_car([ROOT], blocks))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    try:
        _roots, found = read_car(bytes(content))
    except CarError:
        return
    for cid, block in found.items():
        assert cid in {Cid.of_data(block), Cid.of_raw(block)} or cid.digest[-32:] == (
            sha256(block).digest()
        )


def test_order_and_repetition_do_not_matter() -> None:
    content = encode_car([ROOT], [TWO, ONE, TWO])
    assert CarReader().feed(content) == [TWO, ONE, TWO]
    assert read_car(content)[1] == dict([ONE, TWO])


def test_blocks_with_other_codecs_and_sha_512_are_checked() -> None:
    other = bytes([1, 0x70, 0x12, 32]) + sha256(b"x").digest()
    long = bytes([1, 0x71, 0x13, 64]) + sha512(b"y").digest()
    content = encode_car_header([]) + entry(other + b"x") + entry(long + b"y")
    assert list(read_car(content)[1]) == [other, long]
    for bad in (other + b"y", long + b"x"):
        with pytest.raises(CarError):
            read_car(encode_car_header([]) + entry(bad))


def test_blocks_that_cannot_be_checked_are_left_out() -> None:
    unknown = bytes([1, 0x71, 0x1E, 4]) + b"abcd"
    content = encode_car_header([ROOT]) + entry(unknown + b"x") + encode_car_block(*ONE)
    assert read_car(content)[1] == dict([ONE])


def test_roots_are_known_as_soon_as_the_header_is() -> None:
    reader = CarReader()
    header = encode_car_header([ROOT])
    reader.feed(header[:-1])
    assert not reader.has_header
    with pytest.raises(CarError):
        _ = reader.roots
    with pytest.raises(CarError):
        reader.finish()
    reader.feed(header[-1:])
    assert reader.has_header
    assert reader.roots == (ROOT,)
    reader.finish()


def test_limits_of_block_file_count_and_header() -> None:
    content = encode_car([ROOT], [ONE, TWO])
    assert CarReader(max_blocks=2, max_bytes=len(content), max_block_bytes=3).feed(content)
    for reader in (
        CarReader(max_blocks=1),
        CarReader(max_bytes=len(content) - 1),
        CarReader(max_block_bytes=2),
    ):
        with pytest.raises(CarError):
            reader.feed(content)
    with pytest.raises(CarError):
        read_car(entry(bytes(MAX_HEADER_BYTES + 1)))


def test_an_entry_over_the_limit_is_refused_before_it_arrives() -> None:
    reader = CarReader(max_block_bytes=1000)
    reader.feed(encode_car_header([ROOT]))
    with pytest.raises(CarError):
        reader.feed(encode_varint(1101))
    with pytest.raises(CarError):
        CarReader().feed(b"\xff" * 9)


def test_many_small_chunks_hold_no_more_than_one_block() -> None:
    reader = CarReader()
    reader.feed(encode_car_header([ROOT]))
    part = encode_car_block(*ONE)
    for _ in range(1000):
        reader.feed(part[:5])
        reader.feed(part[5:])
        assert len(reader._buffer) == 0
    reader.finish()


@given(st.integers(0, 2**40))
def test_varints_round_trip(number: int) -> None:
    value = shift = 0
    for byte in encode_varint(number):
        value |= (byte & 0x7F) << shift
        shift += 7
    assert value == number
