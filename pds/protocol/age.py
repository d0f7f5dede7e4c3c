"""Files encrypted to a passphrase, in the format of `age` (age-encryption.org/v1).

A file is a header of text lines and a body. The header holds the *file key*, 16 random bytes,
wrapped with a key that scrypt makes of the passphrase, and a MAC over itself. The body is 16 random
bytes and then chunks of 64 KiB, each sealed with ChaCha20-Poly1305 under a nonce that counts them
and marks the last one. So nobody can change, swap or leave out a chunk, or cut the file off, and
not be noticed; and both ways need the memory of one chunk. The `age` program opens these files.

    age-encryption.org/v1
    -> scrypt <salt> <log2 of the work factor>
    <wrapped file key>
    --- <MAC>
    <body>

`Encryptor` and `Decryptor` are fed with pieces of any size. What a decryptor has returned is
authentic, but only after `finish` is it known to be all.

Spec: https://age-encryption.org/v1 (C2SP)
"""

import base64
import binascii
import hashlib
import hmac
from typing import Final

from pds.errors import ProtocolError
from pds.protocol.keys import Cipher, make_cipher

FIRST_LINE: Final = b"age-encryption.org/v1\n"
CHUNK_BYTES: Final = 64 * 1024
ENTROPY_BYTES: Final = 48
"""What one file needs: a salt, a file key and a nonce."""
LOG_WORK: Final = 16
"""Of new files: 64 MB of memory and a quarter of a second for each guess."""
MAX_LOG_WORK: Final = 18
"""What `age` writes itself: 256 MB. More than this a file may not make us spend."""

_TAG_BYTES: Final = 16
_MAX_HEADER_BYTES: Final = 1024
_MIN_LOG_WORK: Final = 1


class AgeError(ProtocolError):
    """A file that is not encrypted to this passphrase, or was changed or cut off."""


def is_age(beginning: bytes) -> bool:
    """Return whether a file that begins so is one of these."""
    return beginning.startswith(FIRST_LINE)


class Encryptor:
    """Encrypts one file."""

    def __init__(self, passphrase: str, *, entropy: bytes, log_work: int = LOG_WORK) -> None:
        """`entropy` is `ENTROPY_BYTES` of fresh randomness, never used twice."""
        if len(entropy) != ENTROPY_BYTES or not passphrase:
            raise ValueError("a file needs a passphrase and fresh randomness")
        salt, file_key, nonce = entropy[:16], entropy[16:32], entropy[32:]
        wrapped = _wrapping(passphrase, salt, log_work).seal(bytes(12), file_key)
        lines = f"-> scrypt {_encode(salt)} {log_work}\n{_encode(wrapped)}\n---".encode()
        head = FIRST_LINE + lines
        self._begin = head + f" {_encode(_mac(file_key, head))}\n".encode() + nonce
        self._chunks = _Chunks(file_key, nonce)
        self._buffer = bytearray()

    def update(self, content: bytes) -> bytes:
        """Take the next bytes and return what can be written."""
        self._buffer += content
        out = bytearray(self._begin)
        self._begin = b""
        while len(self._buffer) > CHUNK_BYTES:  # The last chunk is never empty.
            out += self._chunks.seal(bytes(self._buffer[:CHUNK_BYTES]), is_last=False)
            del self._buffer[:CHUNK_BYTES]
        return bytes(out)

    def finish(self) -> bytes:
        """Return the end of the file."""
        return self.update(b"") + self._chunks.seal(bytes(self._buffer), is_last=True)


class Decryptor:
    """Decrypts one file."""

    def __init__(self, passphrase: str, *, max_log_work: int = MAX_LOG_WORK) -> None:
        self._passphrase = passphrase
        self._max_log_work = max_log_work
        self._buffer = bytearray()
        self._chunks: _Chunks | None = None

    def update(self, content: bytes) -> bytes:
        """Take the next bytes and return what they open. Raises: AgeError."""
        self._buffer += content
        if self._chunks is None:
            self._chunks = self._read_header()
            if self._chunks is None:
                return b""
        out = bytearray()
        sealed_bytes = CHUNK_BYTES + _TAG_BYTES
        while len(self._buffer) > sealed_bytes:
            out += self._chunks.open(bytes(self._buffer[:sealed_bytes]), is_last=False)
            del self._buffer[:sealed_bytes]
        return bytes(out)

    def finish(self) -> bytes:
        """Return the last bytes. Raises: AgeError when this is not the end of the file."""
        if self._chunks is None:
            raise AgeError("the encrypted file ends in its header")
        last = self._chunks.open(bytes(self._buffer), is_last=True)
        if not last and self._chunks.count > 1:
            raise AgeError("the last piece of the encrypted file is empty")
        return last

    def _read_header(self) -> "_Chunks | None":
        """Return the way into the body, once header and nonce are there."""
        mark = self._buffer.find(b"\n---")
        end = -1 if mark < 0 else self._buffer.find(b"\n", mark + 1)
        if end < 0 or len(self._buffer) < end + 17:
            if len(self._buffer) > _MAX_HEADER_BYTES:
                raise AgeError("not a file encrypted to a passphrase")
            return None
        file_key = self._open_header(bytes(self._buffer[: end + 1]), mark + 4)
        nonce = bytes(self._buffer[end + 1 : end + 17])
        del self._buffer[: end + 17]
        return _Chunks(file_key, nonce)

    def _open_header(self, header: bytes, mac_at: int) -> bytes:
        lines = header.decode("ascii", "replace").split("\n")
        words = lines[1].split(" ")
        is_ours = is_age(header) and len(lines) == 5 and words[:2] == ["->", "scrypt"]
        if not is_ours or len(words) != 4 or not words[3].isdecimal():
            raise AgeError("not a file encrypted to a passphrase")
        log_work = int(words[3])
        if not _MIN_LOG_WORK <= log_work <= self._max_log_work:
            raise AgeError("the encrypted file asks for too much work")
        salt, wrapped = _decode(words[2]), _decode(lines[2])
        if len(salt) != 16 or len(wrapped) != 16 + _TAG_BYTES:
            raise AgeError("not a file encrypted to a passphrase")
        file_key = _wrapping(self._passphrase, salt, log_work).unseal(bytes(12), wrapped)
        if file_key is None:
            raise AgeError("the passphrase is not the right one")
        given = _decode(lines[3].removeprefix("--- "))
        if not hmac.compare_digest(given, _mac(file_key, header[:mac_at])):
            raise AgeError("the header of the encrypted file was changed")
        return file_key


class _Chunks:
    """The body: one cipher, and the number of the next chunk."""

    def __init__(self, file_key: bytes, nonce: bytes) -> None:
        self._cipher = make_cipher(_derive(file_key, nonce, b"payload"))
        self.count = 0

    def seal(self, content: bytes, *, is_last: bool) -> bytes:
        return self._cipher.seal(self._nonce(is_last), content)

    def open(self, sealed: bytes, *, is_last: bool) -> bytes:
        content = self._cipher.unseal(self._nonce(is_last), sealed)
        if content is None:
            raise AgeError("the encrypted file was changed or cut off")
        return content

    def _nonce(self, is_last: bool) -> bytes:
        nonce = self.count.to_bytes(11, "big") + bytes((is_last,))
        self.count += 1
        return nonce


def _wrapping(passphrase: str, salt: bytes, log_work: int) -> Cipher:
    key = hashlib.scrypt(
        passphrase.encode(),
        salt=b"age-encryption.org/v1/scrypt" + salt,
        n=1 << log_work,
        r=8,
        p=1,
        dklen=32,
        maxmem=(1 << log_work) * 1024 + (1 << 20),
    )
    return make_cipher(key)


def _mac(file_key: bytes, head: bytes) -> bytes:
    return hmac.digest(_derive(file_key, b"", b"header"), head, "sha256")


def _derive(key: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA-256 for 32 bytes (RFC 5869)."""
    secret = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(secret, info + b"\x01", "sha256")


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode().rstrip("=")


def _decode(text: str) -> bytes:
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error) as error:
        raise AgeError("not a file encrypted to a passphrase") from error
    if _encode(content) != text:
        raise AgeError("not a file encrypted to a passphrase")
    return content
