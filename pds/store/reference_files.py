"""Opens the SQLite files of a stopped reference PDS (`@atproto/pds`), and never writes to them.

They are opened as immutable: no lock is taken, no log is made or replayed. A file on which a server
is running is refused. One whose server has ended and left a log (it does not close all of its
files, so that is the rule) is copied with its log to a scratch folder, and read there.

What is known here are the layouts up to version 0.5: which migrations have run stands in each file.
"""

import fcntl
import shutil
import struct
import sys
from pathlib import Path
from typing import Final

from pds.errors import ConfigError, Unavailable
from pds.store.sqlite import SqliteConnection

CACHE_BYTES: Final = 8 << 20
_LOGS: Final = ("-wal", "-journal")
_SHARED_BYTES: Final = (0x4000_0000 + 2, 510)
_OPEN_BYTE: Final = (128, 1)
"""Where SQLite locks a database that is open, and the index of its log (os_unix.c)."""
_FLOCK: Final = "hhqqi"

_MIGRATIONS: Final = {
    "account": ("003", "007"),
    "sequencer": ("001", "001"),
    "account store": ("001", "001"),
}
"""For each kind of file the oldest migration that is enough, and the newest that is known."""
_TABLES: Final = {
    "account": ("account", "actor", "app_password", "refresh_token", "invite_code"),
    "sequencer": ("repo_seq",),
    "account store": ("repo_root", "repo_block", "record", "blob", "account_pref"),
}


class NotReference(ConfigError):
    """The folder or file is not one of a reference PDS, or of a version that is not known."""


class SourceInUse(Unavailable):
    """A server is running on the file."""


def open_file(file: Path, kind: str, scratch: Path) -> SqliteConnection:
    """Open one file. Raises: NotReference, SourceInUse, Corrupt, Unavailable."""
    if not file.is_file():
        raise NotReference(f"{file} is not there")
    if _is_in_use(file):
        raise SourceInUse(
            f"a server is running on {file}: stop it, and keep it from starting again"
        )
    if _has_log(file):
        file = _copy_with_log(file, scratch)
    connection = SqliteConnection(file, cache_bytes=CACHE_BYTES, untouched=True)
    try:
        _check_layout(connection, file, kind)
    except BaseException:
        connection.close()
        raise
    return connection


def _has_log(file: Path) -> bool:
    logs = (Path(f"{file}{suffix}") for suffix in _LOGS)
    return any(log.exists() and log.stat().st_size for log in logs)


def _copy_with_log(file: Path, scratch: Path) -> Path:
    """Copy a file with its log, bring the log into the copy, and return where that is.

    Raises: Unavailable, Corrupt.
    """
    copy = scratch / file.name
    try:
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        for suffix in ("", *_LOGS, "-shm"):
            Path(f"{copy}{suffix}").unlink(missing_ok=True)
        for suffix in _LOGS:
            if Path(f"{file}{suffix}").exists():
                shutil.copyfile(f"{file}{suffix}", f"{copy}{suffix}")
        shutil.copyfile(file, copy)
    except OSError as error:
        raise Unavailable(f"cannot copy {file} to {scratch}: {error.strerror}") from error
    connection = SqliteConnection(copy, cache_bytes=CACHE_BYTES, writable=True)
    try:
        if not connection.checkpoint(truncate=True):
            raise Unavailable(f"the log of {file} could not be read to its end")
    finally:
        connection.close()
    return copy


def _is_in_use(file: Path) -> bool:
    """Whether a process has the database open, by the locks that SQLite holds meanwhile.

    Every connection holds a shared lock on the file, or on its index of the log, for as long as it
    is open. Only asked on Linux, where the question has a known form.
    """
    if not sys.platform.startswith("linux"):
        return False
    return _is_locked(file, _SHARED_BYTES) or _is_locked(Path(f"{file}-shm"), _OPEN_BYTE)


def _is_locked(file: Path, place: tuple[int, int]) -> bool:
    try:
        with file.open("rb") as opened:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, *place, 0)
            answer = fcntl.fcntl(opened, fcntl.F_GETLK, asked)
    except OSError:
        return False  # Not there, or on a file system without locks.
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _check_layout(connection: SqliteConnection, file: Path, kind: str) -> None:
    tables = ("kysely_migration", *_TABLES[kind])
    missing = [name for name in tables if not connection.has_table(name)]
    if missing:
        raise NotReference(f"{file} is not the {kind} database of a reference PDS: no {missing[0]}")
    done = {str(row[0]) for row in connection.execute("SELECT name FROM kysely_migration")}
    oldest, newest = _MIGRATIONS[kind]
    if oldest not in done:
        raise NotReference(
            f"{file} was made by a reference PDS that is too old: update it to 0.4 or later, and"
            " start it once"
        )
    if unknown := sorted(name for name in done if name > newest):
        raise NotReference(
            f"{file} was made by a newer reference PDS than this program knows (migration"
            f" {unknown[0]}; known up to {newest}): update this program"
        )
