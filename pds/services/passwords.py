"""Passwords: hashing and checking, off the event loop and never without bound.

Two stored forms are read: argon2id in its standard `$argon2id$...` text, which all new hashes have,
and the reference server's `salt:hash` (scrypt), so that its accounts can be taken over without a
reset (ACC-30). A hash that is not of today's form and cost is replaced at the next login.

Hashing is made expensive on purpose, so it is the cheapest way to overload a login server: it runs
in a few threads of its own (both libraries release the interpreter lock), and a request that finds
the queue full is refused with 429 instead of waiting.

App passwords are random and long, so a fast keyed hash is enough for them, and trying them costs a
login next to nothing, found or not (ACC-35). Those of an account that came from the reference
server are kept as it hashed them (scrypt) until each is first used.

An unknown account costs the same as a known one: the password is checked against a decoy.
"""

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import argon2

from pds.errors import RequestError

T = TypeVar("T")

MIN_NEW_PASSWORD_CHARS: Final = 8
"""Our floor for new passwords (ACC-10)."""
MAX_NEW_PASSWORD_CHARS: Final = 256
"""Reference limit for new passwords (ACC-10, ACC-31)."""
MAX_PASSWORD_CHARS: Final = 512
"""Longest password that is checked at all: old accounts may have such (ACC-31)."""

ARGON2_MEMORY_KIB: Final = 19 * 1024
ARGON2_PASSES: Final = 2
ARGON2_LANES: Final = 1

_APP_PASSWORD_LABEL: Final = b"freehold app password 1"

_SCRYPT_N: Final = 16384
_SCRYPT_R: Final = 8
_SCRYPT_P: Final = 1
_SCRYPT_BYTES: Final = 64
_SCRYPT_MAX_MEMORY: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordSettings:
    """How much hashing may go on at once."""

    threads: int = 2
    max_waiting: int = 32


class Passwords:
    """Hashes and checks passwords in a bounded pool."""

    def __init__(self, settings: PasswordSettings | None = None) -> None:
        self._settings = settings or PasswordSettings()
        self._hasher = argon2.PasswordHasher(
            time_cost=ARGON2_PASSES, memory_cost=ARGON2_MEMORY_KIB, parallelism=ARGON2_LANES
        )
        self._pool = ThreadPoolExecutor(self._settings.threads, thread_name_prefix="password")
        self._jobs = 0
        self._decoy: str | None = None

    async def hash(self, password: str) -> str:
        """Return the stored form of a new password, which `check_new_password` has accepted."""
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, password: str, stored: str | None) -> bool:
        """Whether `password` is the one stored; with `stored` None the same work and False.

        Raises: RequestError (429) when too many checks are waiting.
        """
        if len(password) > MAX_PASSWORD_CHARS:
            return False
        return await self._run(lambda: self._verify(password, stored))

    async def find_reference_app_password(
        self, password: str, candidates: Sequence[bytes]
    ) -> bytes | None:
        """Return the one of these hashes that is of this app password.

        Hashes that the reference server has not made are passed over. Raises: RequestError (429).
        """
        hashes = [one for one in candidates if is_reference_app_password(one)]
        given = password.strip().lower()
        if not hashes or len(given) > MAX_PASSWORD_CHARS:
            return None
        return await self._run(lambda: _find_reference_hash(given, hashes))

    def needs_rehash(self, stored: str) -> bool:
        """Whether the stored form is not the one that new passwords get."""
        if not stored.startswith("$argon2id$"):
            return True
        return self._hasher.check_needs_rehash(stored)

    def close(self) -> None:
        """Stop the threads; waiting checks are given up."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _verify(self, password: str, stored: str | None) -> bool:
        if stored is None:
            if self._decoy is None:
                self._decoy = self._hasher.hash("decoy")
            self._verify_argon2(password, self._decoy)
            return False
        if stored.startswith("$argon2"):
            return self._verify_argon2(password, stored)
        return verify_reference_hash(password, stored)

    def _verify_argon2(self, password: str, stored: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if self._jobs >= self._settings.threads + self._settings.max_waiting:
            raise RequestError(
                "RateLimitExceeded",
                "Too many sign-ins at the moment, try again soon",
                429,
                headers={"Retry-After": "5"},
            )
        self._jobs += 1
        job = asyncio.get_running_loop().run_in_executor(self._pool, work)
        # Shielded: a caller that leaves does not free the place that its job still occupies.
        job.add_done_callback(self._job_done)
        return await asyncio.shield(job)

    def _job_done(self, job: "asyncio.Future[T]") -> None:
        self._jobs -= 1
        if not job.cancelled():
            job.exception()  # Seen, also if the caller has left.


def check_new_password(password: str) -> None:
    """Refuse a password that is too short or too long for a new account (ACC-10)."""
    if len(password) < MIN_NEW_PASSWORD_CHARS:
        raise RequestError(
            "InvalidPassword",
            f"Password must have at least {MIN_NEW_PASSWORD_CHARS} characters",
        )
    if len(password) > MAX_NEW_PASSWORD_CHARS:
        raise RequestError(
            "InvalidPassword",
            f"Password must have at most {MAX_NEW_PASSWORD_CHARS} characters",
        )


def generate_app_password() -> str:
    """Return a new app password: 80 random bits as `xxxx-xxxx-xxxx-xxxx` (ACC-33)."""
    text = base64.b32encode(secrets.token_bytes(10)).decode().lower()
    return "-".join(text[at : at + 4] for at in range(0, 16, 4))


def hash_app_password(password: str) -> bytes:
    """Return the stored form of an app password (ACC-35)."""
    return hmac.digest(_APP_PASSWORD_LABEL, password.strip().lower().encode(), "sha256")


def is_reference_app_password(stored: bytes) -> bool:
    """Whether an app password's stored form is the reference server's `salt:hash`."""
    return len(stored) > hashlib.sha256().digest_size and b":" in stored


def _find_reference_hash(password: str, hashes: Sequence[bytes]) -> bytes | None:
    """Try a password on hashes; those of one account have one salt, made of its DID."""
    digests: dict[bytes, bytes] = {}
    found = None
    for stored in hashes:
        salt, _, digest = stored.partition(b":")
        if salt not in digests:
            digests[salt] = _scrypt(password, salt).hex().encode()
        if hmac.compare_digest(digests[salt], digest):
            found = stored
    return found


def verify_reference_hash(password: str, stored: str) -> bool:
    """Check a `salt:hash` of the reference server (ACC-30).

    The salt fed to scrypt is the hex text itself, not the bytes it stands for.
    """
    salt, _, digest_hex = stored.partition(":")
    try:
        expected = bytes.fromhex(digest_hex)
    except ValueError:
        return False
    if not salt or len(expected) != _SCRYPT_BYTES:
        return False
    return hmac.compare_digest(_scrypt(password, salt.encode()), expected)


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(
        password.encode(),
        salt=salt,
        n=_SCRYPT_N,
        r=_SCRYPT_R,
        p=_SCRYPT_P,
        maxmem=_SCRYPT_MAX_MEMORY,
        dklen=_SCRYPT_BYTES,
    )
