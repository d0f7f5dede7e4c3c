"""CIDs: both forms, one text for one CID, blessed or not.

Spec: DM-30, DM-31, DM-32, DM-33, DM-34.
"""

import base64
from hashlib import sha256, sha512

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pds.protocol.cid import (
    DAG_CBOR,
    MAX_CID_BYTES,
    RAW,
    SHA_256,
    Cid,
    InvalidCid,
    decode_cid,
    parse_cid,
    read_cid,
)
from tests.support import load_vectors

DATA = Cid.of_data(b"\xa0")
BLOB = Cid.of_raw(b"hello")


def test_a_data_cid_is_version_1_dag_cbor_sha_256() -> None:
    assert bytes([1, 0x71, 0x12, 32]) + sha256(b"\xa0").digest() == DATA
    assert (DATA.codec, DATA.hash_code) == (DAG_CBOR, SHA_256)
    assert DATA.digest == sha256(b"\xa0").digest()
    assert DATA.is_blessed
    assert DATA.is_blessed_data
    assert not DATA.is_blessed_raw


def test_a_blob_cid_is_raw_and_can_be_made_from_a_streamed_digest() -> None:
    assert Cid.of_raw_digest(sha256(b"hello").digest()) == BLOB
    assert BLOB.codec == RAW
    assert BLOB.is_blessed
    assert BLOB.is_blessed_raw
    assert not BLOB.is_blessed_data
    with pytest.raises(InvalidCid):
        Cid.of_raw_digest(b"short")


def test_the_empty_blob_has_a_cid() -> None:
    assert str(Cid.of_raw(b"")) == "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"


def test_vectors_of_cid_text_and_bytes_agree() -> None:
    for vector in load_vectors("cid.json")["valid"]:
        cid = parse_cid(vector["text"])
        assert cid.hex() == vector["hex"]
        assert str(cid) == vector["text"]
        assert decode_cid(bytes.fromhex(vector["hex"])) == cid
        assert cid.is_blessed is vector["blessed"]


@pytest.mark.parametrize("vector", load_vectors("cid.json")["invalid"], ids=lambda v: v["why"])
def test_a_bad_cid_is_refused(vector: dict[str, str]) -> None:
    with pytest.raises(InvalidCid):
        if "text" in vector:
            parse_cid(vector["text"])
        else:
            decode_cid(bytes.fromhex(vector["hex"]))


def test_a_cid_of_another_codec_or_hash_is_kept_and_is_not_blessed() -> None:
    json_codec = decode_cid(bytes([1, 0x80 | 0x00, 0x04, 0x12, 32]) + bytes(32))
    assert (json_codec.codec, json_codec.is_blessed) == (0x200, False)
    long_hash = decode_cid(bytes([1, 0x71, 0x13, 64]) + sha512(b"").digest())
    assert (long_hash.hash_code, long_hash.is_blessed) == (0x13, False)


def test_a_cid_longer_than_the_limit_is_refused() -> None:
    assert len(decode_cid(bytes([1, 0x71, 0x12, 96]) + bytes(96))) == MAX_CID_BYTES
    with pytest.raises(InvalidCid):
        decode_cid(bytes([1, 0x71, 0x12, 97]) + bytes(97))


def test_cids_compare_as_bytes_and_show_their_text() -> None:
    assert Cid(bytes(DATA)) == DATA
    assert hash(Cid(bytes(DATA))) == hash(DATA)
    assert repr(DATA) == f"Cid({DATA})"


def test_reading_a_cid_stops_at_its_end() -> None:
    assert read_cid(DATA + b"rest") == (DATA, 36)
    other = bytes([1, 0x55, 0x00, 1, 7])
    assert read_cid(other + b"rest") == (other, 5)
    for bad in (b"", DATA[:35], bytes([1, 0x55, 0, 9, 1]), b"\x12\x20" + bytes(32)):
        with pytest.raises(InvalidCid):
            read_cid(bad)


@given(st.binary(max_size=95))
def test_text_and_bytes_are_inverse(digest: bytes) -> None:
    content = bytes([1, 0x55, 0x00, len(digest)]) + digest
    if not digest:
        with pytest.raises(InvalidCid):
            decode_cid(content)
        return
    cid = decode_cid(content)
    assert parse_cid(str(cid)) == cid
    assert str(cid)[1:] == base64.b32encode(content).decode().lower().rstrip("=")


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz234567", max_size=70))
def test_whatever_text_is_accepted_is_the_one_text_of_its_cid(body: str) -> None:
    try:
        cid = parse_cid("b" + body)
    except InvalidCid:
        return
    assert str(cid) == "b" + body
