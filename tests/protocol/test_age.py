"""Files encrypted to a passphrase: what the `age` program writes and reads, and nothing else."""

import base64

import pytest

from pds.protocol.age import (
    CHUNK_BYTES,
    FIRST_LINE,
    AgeError,
    Decryptor,
    Encryptor,
    is_age,
)

PASSPHRASE = "correct horse battery"
ENTROPY = bytes(range(48))
# Made with the entropy above and a work factor of 2^4; opened by rage (pyrage 1.4.0).
VECTOR = base64.b64decode(
    "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IHNjcnlwdCBBQUVDQXdRRkJnY0lDUW9MREEwT0R3IDQKTWtD"
    "SnplR2dqWk1WWnFEVFRPQXBGUEZHZTIySFB6Umlld241L1hQZERSMAotLS0gNXBlcTdtaXFFdzN5Qy94"
    "UHR3RlBXMllkMlF6bGFVVG5xUXE5emZ5WktmUQogISIjJCUmJygpKissLS4vtJaoi/lHAPptRRCdASUX"
    "HAj3loA1I0cI4ig="
)


def encrypt(content: bytes, *, piece: int = 10_000) -> bytes:
    cipher = Encryptor(PASSPHRASE, entropy=ENTROPY, log_work=4)
    pieces = [cipher.update(content[at : at + piece]) for at in range(0, len(content), piece)]
    return b"".join(pieces) + cipher.finish()


def decrypt(sealed: bytes, *, passphrase: str = PASSPHRASE, piece: int = 10_000) -> bytes:
    cipher = Decryptor(passphrase)
    pieces = [cipher.update(sealed[at : at + piece]) for at in range(0, len(sealed), piece)]
    return b"".join(pieces) + cipher.finish()


def test_what_another_implementation_opens_stays_as_it_is() -> None:
    assert encrypt(b"hello, age") == VECTOR
    assert decrypt(VECTOR) == b"hello, age"


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 200_000])
def test_content_of_any_length_comes_back_in_pieces_of_any_size(size: int) -> None:
    content = bytes(number * 7 % 251 for number in range(size))
    sealed = encrypt(content)
    assert is_age(sealed)
    for piece in (997, 1 << 20):
        assert decrypt(sealed, piece=piece) == content


def test_a_file_that_was_cut_off_is_never_taken_for_whole() -> None:
    sealed = encrypt(bytes(3 * CHUNK_BYTES))
    body = len(sealed) - 3 * (CHUNK_BYTES + 16)
    cuts = [0, 10, body - 16, body - 1, body, body + 100]
    cuts += [body + CHUNK_BYTES + 16, body + 2 * (CHUNK_BYTES + 16), len(sealed) - 1]
    for cut in cuts:
        with pytest.raises(AgeError):
            decrypt(sealed[:cut])


def test_chunks_cannot_be_changed_swapped_repeated_or_added() -> None:
    sealed = encrypt(bytes(2 * CHUNK_BYTES) + b"end")
    size = CHUNK_BYTES + 16
    body = len(sealed) - 2 * size - 19
    first, second = sealed[body : body + size], sealed[body + size : body + 2 * size]
    flipped = bytearray(sealed)
    flipped[body + 5] ^= 1
    for changed in (
        bytes(flipped),
        sealed[:body] + second + first + sealed[body + 2 * size :],
        sealed[: body + size] + first + sealed[body + size :],
        sealed + b"x",
    ):
        with pytest.raises(AgeError):
            decrypt(changed)


def test_an_empty_last_chunk_is_refused() -> None:
    cipher = Encryptor(PASSPHRASE, entropy=ENTROPY, log_work=4)
    sealed = cipher.update(bytes(CHUNK_BYTES))
    sealed += cipher._chunks.seal(bytes(CHUNK_BYTES), is_last=False)
    sealed += cipher._chunks.seal(b"", is_last=True)
    with pytest.raises(AgeError, match="empty"):
        decrypt(sealed)


def test_the_wrong_passphrase_opens_nothing() -> None:
    with pytest.raises(AgeError, match="passphrase is not the right one"):
        decrypt(VECTOR, passphrase="something else")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"scrypt", b"X25519"),
        (b" 4\n", b" 04\n"),
        (b" 4\n", b" 19\n"),
        (b" 4\n", b" 0\n"),
        (b" 4\n", b" 4 5\n"),
        (b" 4\n", b" four\n"),
        (b"-> scrypt A", b"-> scrypt *"),
        (b"-> scrypt AAEC", b"-> scrypt "),
        (b"--- ", b"---  "),
        (b"v1\n", b"v2\n"),
    ],
)
def test_a_header_with_anything_else_in_it_is_refused(old: bytes, new: bytes) -> None:
    assert old in VECTOR
    with pytest.raises(AgeError):
        decrypt(VECTOR.replace(old, new, 1))


def test_a_changed_mac_and_bits_left_over_are_refused() -> None:
    at = VECTOR.index(b"--- ") + 4
    changed = VECTOR[:at] + (b"A" if VECTOR[at : at + 1] != b"A" else b"B") + VECTOR[at + 1 :]
    with pytest.raises(AgeError, match="header"):
        decrypt(changed)
    end = VECTOR.index(b"\n", at)
    loose = chr(VECTOR[end - 1] + 1).encode()
    with pytest.raises(AgeError):
        decrypt(VECTOR[: end - 1] + loose + VECTOR[end:])


def test_a_header_without_end_is_not_read_forever() -> None:
    with pytest.raises(AgeError):
        Decryptor(PASSPHRASE).update(FIRST_LINE + b"x" * 5000)
    assert not is_age(b"ustar")


def test_an_encryptor_needs_randomness_and_a_passphrase() -> None:
    for passphrase, entropy in (("", ENTROPY), (PASSPHRASE, b"short")):
        with pytest.raises(ValueError, match="needs"):
            Encryptor(passphrase, entropy=entropy)
