"""The one door to durable state: what a transaction is, and what an engine promises.

`Engine.transact(label, fn, *args)` runs `fn(txn, *args)`, a plain function, on the writer thread
and answers once its transaction is on stable storage. `Engine.read(label, fn, *args)` runs on a
reader thread, the whole of `fn` in one snapshot.

Rules for the functions (jobs) that are handed over, because jobs share a transaction and may be run
a second time after a rollback:

* no effect outside `txn`; time, randomness and keys come in as arguments;
* arguments are not changed;
* a statement that failed dooms its job: nothing further may be done with that `txn`
  (use `ON CONFLICT ... RETURNING` to ask, rather than catching `Conflict` and going on);
* SQL has `?` for parameters, keeps to the subset that SQLite and PostgreSQL share, and has no
  `now()`, `random()` or `AUTOINCREMENT` (`pds/store/statements.py` refuses them), so that the log
  of writes in commit order replays to the same rows.

A job never sees a sequence number: it hands `txn.emit` a function that builds the frame, and the
engine calls that with the number, after the bodies of all jobs of the group have run.

This module holds types only. `group.py` runs groups of jobs, `writer.py` and `reader.py` own the
threads, `read_processes.py` the processes, `sqlite.py` and `postgres.py` are the engines.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol, TypeVar, TypeVarTuple

from pds.errors import Unavailable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SqlValue = None | int | str | bytes
Params = Sequence[SqlValue]
Row = tuple[Any, ...]
BuildFrame = Callable[[int, int], bytes]
"""Called with `(seq, at_us)` on the writer thread; returns the frame as it will be sent."""

SWITCH_INTERVAL_S: Final = 0.0005
"""What the app gives `sys.setswitchinterval`.

With the default of 5 ms a busy writer thread delays the event loop by that much; measured 0.6 ms
with this value.
"""

MAX_GROUP_JOBS: Final = 64
MAX_GROUP_S: Final = 0.010
"""A group takes no further job once its bodies ran this long."""

SLOW_JOB_S: Final = 0.050
"""A job that holds the writer longer is logged."""

MAX_READ_S: Final = 60.0
"""A read transaction that is older is ended: it keeps the write-ahead log from being reused."""

MAX_WAITING_JOBS: Final = 4096
MAX_WAITING_BULK_JOBS: Final = 256
MAX_WAITING_READS: Final = 8192
"""Queue limits: beyond them a call answers `Unavailable` at once, so that overload is shed early
instead of being answered after its caller has gone."""

MAX_BULK_ROWS: Final = 500
"""Most rows that one bulk job should write; nothing checks it but the slow-job warning."""


class FirstRead(NamedTuple):
    """What a job reads before it does anything else.

    Where reads are round trips those of a group go together. So a job that names its first read
    must change no account or repo beside its `accounts`.
    """

    sql: str
    params: tuple[SqlValue, ...]


class CommittedEvent(NamedTuple):
    """An event that is on stable storage. `prev_seq` is the number before it, also over groups."""

    prev_seq: int
    seq: int
    aid: int
    kind: str
    at_us: int
    frame: bytes


class Statement(NamedTuple):
    """One write of the write log: `rows` holds one entry, or those of a `write_many`."""

    sql: str
    rows: tuple[tuple[SqlValue, ...], ...]


class CommittedGroup(NamedTuple):
    """What one COMMIT made durable. `statements` is empty unless a write log is kept."""

    events: tuple[CommittedEvent, ...]
    statements: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class ForeignCommits:
    """What other nodes made durable: their highest number, and the accounts that changed.

    `aids` is None when any account may have changed.
    """

    last_seq: int
    aids: tuple[int, ...] | None


class Interrupted(Unavailable):
    """The transaction was undone through no fault of its jobs: they may be run again.

    A deadlock, a serialization failure, or a lost connection to the database.
    """


class HealthStatus(StrEnum):
    """How an engine is; FAILED means that writes are refused or keep failing."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """What a health page and the metrics show of an engine."""

    status: HealthStatus
    problems: tuple[str, ...]
    last_seq: int
    waiting_jobs: int
    waiting_bulk_jobs: int
    waiting_reads: int
    groups: int
    jobs: int
    log_bytes: int
    database_bytes: int


class Txn(Protocol):
    """A transaction, as handed to a job. On a reader thread only `read*` may be used."""

    @property
    def is_writable(self) -> bool:
        """Whether this is a transaction of the writer."""

    def read(self, sql: str, params: Params = ()) -> list[Row]:
        """Return all rows of a SELECT; on the writer including its own writes."""

    def read_one(self, sql: str, params: Params = ()) -> Row | None:
        """Return the first row of a SELECT, or None."""

    def write(self, sql: str, params: Params = ()) -> list[Row]:
        """Run an INSERT, UPDATE or DELETE and return the rows of its RETURNING clause.

        Raises: Conflict when a unique row exists already; Unavailable; Corrupt.
        """

    def write_many(self, sql: str, rows: Iterable[Params]) -> None:
        """Run one statement for each row of parameters."""

    def next_id(self, name: str) -> int:
        """Return the next number of the counter `name`, starting at 1."""

    def lock_accounts(self, aids: Iterable[int]) -> None:
        """Lock accounts that were not named to `transact` (nothing to do with one writer)."""

    def emit(self, kind: str, aid: int, build_frame: BuildFrame) -> None:
        """Add an event; `build_frame(seq, at_us)` is called before the commit, with its number."""

    def announce(self, aid: int) -> None:
        """Have other nodes told that what they remember of this account may be outdated."""

    def on_commit(self, hook: Callable[[], None]) -> None:
        """Run `hook` on the event loop after the commit and before the caller is answered."""


Write = Callable[[bytes], None]
"""Takes content that a read job puts out. Never waits for a client; may be called on any thread."""

EventHook = Callable[[Sequence[CommittedEvent]], None]
"""Gets the events of one group, in order; groups come in order too."""

ForeignHook = Callable[[ForeignCommits], None]
"""Called on the event loop when other nodes have committed something."""

Recorder = Callable[[Sequence[Statement]], None]
"""Gets the writes of one committed group, on the writer thread, in commit order."""

MakeDurable = Callable[[CommittedGroup], None]
"""Called on the writer thread between COMMIT and the answers; replication will wait here.

When it raises, writes stop, and it is called again with the same group before they resume."""


class Engine(Protocol):
    """A database with one order of writes."""

    @property
    def last_seq(self) -> int:
        """The highest sequence number given out so far."""

    async def start(self) -> None:
        """Open (create, migrate) the database; raises ConfigError, Unavailable or Corrupt."""

    async def close(self) -> None:
        """Refuse new calls, finish those that wait, and close the database."""

    async def transact(
        self,
        label: str,
        fn: "Callable[[Txn, *Ts], T]",
        *args: *Ts,
        accounts: Sequence[int] = (),
        bulk: bool = False,
        first_read: FirstRead | None = None,
    ) -> T:
        """Run `fn(txn, *args)` on the writer and return its result once it is durable.

        `accounts` are those whose rows the job changes, when known; a server with several
        writers locks them in order. `first_read` may name what the job begins with. `bulk` jobs (at
        most 500 rows each) run alone and let user writes pass. Cancelling the caller never cancels
        a job that has started.

        Raises: what `fn` raises; Unavailable when the queue is full, the disk is full, the clock
        is doubted or writes are stopped.
        """

    async def read(self, label: str, fn: "Callable[[Txn, *Ts], T]", *args: *Ts) -> T:
        """Run `fn(txn, *args)` on a reader, all of it in one snapshot.

        Raises: what `fn` raises; Unavailable when the queue is full or it took over 60 s.
        """

    async def stream(
        self,
        label: str,
        write: Write,
        fn: "Callable[[Txn, Write, *Ts], None]",
        *args: *Ts,
        apart: bool = False,
    ) -> None:
        """Run `fn(txn, write, *args)` on a reader, all of it in one snapshot.

        What `fn` writes arrives at `write` in order, not necessarily in the same pieces. Once
        something was written, `fn` is never run a second time. Cancelling the caller ends the job
        soon, and so does an exception of `write`.

        `apart` asks for a process of its own, where the engine has one: for jobs that take tens of
        milliseconds or more. `fn` must then be a function of a module, and `args` copyable.

        Raises: what `fn` or `write` raises; Unavailable when the queue is full, it took over 60 s,
        or the process died. Who raises has perhaps written something before.
        """

    async def raise_seq(self, floor: int) -> int:
        """Make every later number higher than `floor`; return the resulting `last_seq`."""

    def add_event_hook(self, hook: EventHook) -> None:
        """Have `hook` called on the event loop for each group with events, in seq order."""

    def add_foreign_hook(self, hook: ForeignHook) -> None:
        """Have `hook` called on the event loop when other nodes have committed something.

        Calls may come late, together or twice, but what was committed is never left out.
        """

    def health(self) -> EngineHealth:
        """Return how the engine is, without touching the database."""
