"""Private keys at rest: an envelope of AES-256-GCM under one master key.

The master key comes from the environment or a file and is never in the database or its backups; the
database holds a fingerprint of it, so that the wrong one is noticed at start. Under it each account
has one data key (`data_key`, wrapped), and under that lie the account's signing keys
(`signing_key`, sealed). Every ciphertext is bound to its row and its account, so rows cannot be
swapped. Deleting an account's data key erases its secrets, also from old copies of
`signing_key`, as far as no old copy of `data_key` is left.

Secrets of acts in progress (the journal) belong to no account yet; `seal` and `open` keep them
directly under the master key, bound to the subject of the act.

Loaded signers stay in a bounded memory cache, which takes in nothing that is not committed: a
number that a rolled-back job used may be given to another account.

Owns the tables `data_key` and `signing_key` and the fact `master_key`. Draws no randomness: nonces
and keys are made of the `entropy` that is passed in.
"""

import contextlib
import hashlib
import hmac
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pds.errors import ConfigError, Corrupt, StoreError
from pds.protocol.keys import Curve, Signer, generate_secret, make_signer, parse_did_key
from pds.store.engine import Txn

MASTER_KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
KEY_ENTROPY_BYTES: Final = 32 + 2 * NONCE_BYTES
"""What `create_signing_key` consumes at most: a data key, and a nonce for each of two seals."""

MAX_SIGNERS: Final = 4096
"""Signers kept in memory. One takes about 1 KB; loading one takes 0.1-0.5 ms without the
accelerators."""


class WrongMasterKey(ConfigError):
    """The master key is not the one that this database was written with."""


class KeyMissing(StoreError):
    """The key does not exist, or its account's data key has been deleted."""


class Keystore:
    """Keys of all accounts. May be used from several threads."""

    def __init__(self, master_key: bytes, *, max_signers: int = MAX_SIGNERS) -> None:
        if len(master_key) != MASTER_KEY_BYTES:
            raise ConfigError(f"the master key must have {MASTER_KEY_BYTES} bytes")
        self._wrapping = AESGCM(_derive(master_key, b"wrap data keys"))
        self._sealing = AESGCM(_derive(master_key, b"seal journal secrets"))
        self._fingerprint = _derive(master_key, b"fingerprint")[:8].hex()
        self._client_entropy = _derive(master_key, b"oauth client key")
        self._max_signers = max_signers
        self._signers: OrderedDict[int, tuple[int, Signer]] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Keystore({self._fingerprint})"

    def key_fingerprint(self) -> str:
        """Return 16 hex digits that name the master key and tell nothing about it."""
        return self._fingerprint

    def client_signer(self) -> Signer:
        """Return the key by which this host, all its nodes, proves itself as an OAuth client."""
        return make_signer("p256", generate_secret("p256", self._client_entropy))

    def check_master_key(self, txn: Txn) -> None:
        """Compare with the master key that the database knows, or make this one known.

        Raises: WrongMasterKey.
        """
        known = txn.read_one("SELECT value FROM fact WHERE name = ?", ("master_key",))
        ours = self._fingerprint.encode()
        if known is None:
            txn.write("INSERT INTO fact (name, value) VALUES (?, ?)", ("master_key", ours))
        elif known[0] != ours:
            raise WrongMasterKey(
                f"the database was written with master key {known[0].decode('ascii', 'replace')},"
                f" but {self._fingerprint} was given: find the right key, or restore it"
            )

    def create_signing_key(
        self, txn: Txn, aid: int, *, curve: Curve, secret: bytes, entropy: bytes, now_us: int
    ) -> tuple[int, str]:
        """Store a signing key of an account; return its id and did:key.

        `entropy` is `KEY_ENTROPY_BYTES` of fresh randomness, never used twice.
        """
        if len(entropy) != KEY_ENTROPY_BYTES:
            raise ValueError(f"entropy must have {KEY_ENTROPY_BYTES} bytes")
        did_key = make_signer(curve, secret).public_key.did_key
        data_key_id, data_key = self._load_or_create_data_key(
            txn, aid, entropy[: 32 + NONCE_BYTES], now_us
        )
        key_id = txn.next_id("signing_key")
        sealed = _encrypt(
            AESGCM(data_key),
            entropy[32 + NONCE_BYTES :],
            secret,
            _bind("signing-key", aid, data_key_id, key_id, did_key),
        )
        txn.write(
            "INSERT INTO signing_key (key_id, aid, data_key_id, did_key, secret, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (key_id, aid, data_key_id, did_key, sealed, now_us),
        )
        return key_id, did_key

    def signer(self, txn: Txn, key_id: int) -> Signer:
        """Return the signer of a key.

        Raises: KeyMissing; Corrupt when the row was changed or swapped.
        """
        with self._lock:
            held = self._signers.get(key_id)
            if held is not None:
                self._signers.move_to_end(key_id)
                return held[1]
        aid, signer = self._load_signer(txn, key_id)
        if txn.is_writable:
            txn.on_commit(lambda: self._keep(key_id, aid, signer))
        else:
            self._keep(key_id, aid, signer)
        return signer

    def did_key(self, txn: Txn, key_id: int) -> str:
        """Return the public half of a key as did:key; raises KeyMissing."""
        row = txn.read_one("SELECT did_key FROM signing_key WHERE key_id = ?", (key_id,))
        if row is None:
            raise KeyMissing(f"signing key {key_id} does not exist")
        return str(row[0])

    def delete_signing_key(self, txn: Txn, key_id: int) -> None:
        """Delete one signing key."""
        txn.write("DELETE FROM signing_key WHERE key_id = ?", (key_id,))
        txn.on_commit(lambda: self._drop(lambda held_id, _aid: held_id == key_id))

    def erase_account(self, txn: Txn, aid: int) -> None:
        """Delete the account's data key, which erases its secrets, and their rows."""
        txn.write("DELETE FROM signing_key WHERE aid = ?", (aid,))
        txn.write("DELETE FROM data_key WHERE aid = ?", (aid,))
        txn.on_commit(lambda: self._drop(lambda _key_id, held_aid: held_aid == aid))

    def seal(self, subject: str, secret: bytes, *, nonce: bytes) -> bytes:
        """Encrypt a secret of an act in progress; `nonce` is 12 fresh random bytes."""
        return _encrypt(self._sealing, nonce, secret, _bind("journal", subject))

    def open(self, subject: str, sealed: bytes) -> bytes:
        """Decrypt what `seal` made for the same subject; raises Corrupt."""
        return _decrypt(self._sealing, sealed, _bind("journal", subject))

    def _load_or_create_data_key(
        self, txn: Txn, aid: int, entropy: bytes, now_us: int
    ) -> tuple[int, bytes]:
        row = txn.read_one(
            "SELECT data_key_id, wrapped FROM data_key WHERE aid = ?"
            " ORDER BY data_key_id DESC LIMIT 1",
            (aid,),
        )
        if row is not None:
            return row[0], _decrypt(self._wrapping, row[1], _bind("data-key", aid, row[0]))
        data_key_id = txn.next_id("data_key")
        data_key, nonce = entropy[:32], entropy[32:]
        wrapped = _encrypt(self._wrapping, nonce, data_key, _bind("data-key", aid, data_key_id))
        txn.write(
            "INSERT INTO data_key (data_key_id, aid, wrapped, created_at) VALUES (?, ?, ?, ?)",
            (data_key_id, aid, wrapped, now_us),
        )
        return data_key_id, data_key

    def _load_signer(self, txn: Txn, key_id: int) -> tuple[int, Signer]:
        row = txn.read_one(
            "SELECT s.aid, s.data_key_id, s.did_key, s.secret, d.wrapped FROM signing_key s"
            " JOIN data_key d ON d.data_key_id = s.data_key_id AND d.aid = s.aid"
            " WHERE s.key_id = ?",
            (key_id,),
        )
        if row is None:
            raise KeyMissing(f"signing key {key_id} does not exist")
        aid, data_key_id, did_key, sealed, wrapped = row
        data_key = _decrypt(self._wrapping, wrapped, _bind("data-key", aid, data_key_id))
        secret = _decrypt(
            AESGCM(data_key), sealed, _bind("signing-key", aid, data_key_id, key_id, did_key)
        )
        return aid, make_signer(parse_did_key(did_key).curve, secret)

    def _keep(self, key_id: int, aid: int, signer: Signer) -> None:
        with self._lock:
            self._signers[key_id] = (aid, signer)
            self._signers.move_to_end(key_id)
            while len(self._signers) > self._max_signers:
                self._signers.popitem(last=False)

    def _drop(self, is_gone: Callable[[int, int], bool]) -> None:
        with self._lock:
            for key_id in [k for k, (aid, _) in self._signers.items() if is_gone(k, aid)]:
                del self._signers[key_id]


def knows_master_key(txn: Txn) -> bool:
    """Whether anything may have been encrypted in this database."""
    return txn.read_one("SELECT value FROM fact WHERE name = ?", ("master_key",)) is not None


def parse_master_key(text: str) -> bytes:
    """Return the master key written as 64 hex digits; raises ConfigError, which never quotes it."""
    try:
        master_key = bytes.fromhex(text.strip())
    except ValueError as error:
        raise ConfigError("the master key must be 64 hex digits") from error
    if len(master_key) != MASTER_KEY_BYTES:
        raise ConfigError("the master key must be 64 hex digits")
    return master_key


def load_master_key(path: Path, *, entropy: bytes | None = None) -> bytes:
    """Read the master key from a file.

    When the file is missing and `entropy` (32 random bytes) is given, make it: readable by its
    owner only, and on stable storage before anything is encrypted with it.
    Raises: ConfigError.
    """
    try:
        return parse_master_key(path.read_text("ascii"))
    except FileNotFoundError as error:
        if entropy is None:
            raise ConfigError(f"the master key file {path} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the master key file {path} cannot be read") from error
    if len(entropy) != MASTER_KEY_BYTES:
        raise ConfigError(f"the master key must have {MASTER_KEY_BYTES} bytes")
    _create_key_file(path, entropy)
    return entropy


def _create_key_file(path: Path, master_key: bytes) -> None:
    """Write the file under another name first, so that it is never there half written."""
    unfinished = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(master_key.hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(unfinished, path)
        unfinished.unlink()
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"the master key file {path} cannot be made: {error.strerror}") from error


def _derive(master_key: bytes, purpose: bytes) -> bytes:
    """Return an independent key for one purpose."""
    return hmac.digest(master_key, b"freehold keystore v1: " + purpose, hashlib.sha256)


def _bind(kind: str, *parts: int | str) -> bytes:
    """Return the associated data that ties a ciphertext to its place."""
    return "|".join(["v1", kind, *(str(part) for part in parts)]).encode()


def _encrypt(cipher: AESGCM, nonce: bytes, secret: bytes, bound_to: bytes) -> bytes:
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce must have {NONCE_BYTES} bytes")
    return nonce + cipher.encrypt(nonce, secret, bound_to)


def _decrypt(cipher: AESGCM, sealed: bytes, bound_to: bytes) -> bytes:
    try:
        return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound_to)
    except (InvalidTag, ValueError) as error:
        raise Corrupt("a stored secret was changed or does not belong here") from error
