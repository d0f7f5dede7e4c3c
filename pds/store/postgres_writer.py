"""The connection of the writer thread to PostgreSQL: few round trips, failures to whom they belong.

A round trip costs more than most statements, so a statement whose answer nobody reads waits for
the next one that needs an answer, and goes with it: BEGIN and the locks of a group with the first
read of the first job, the writes of a job with the first read of the next. What jobs say that they
will read first (`FirstRead`) is asked for together when the transaction opens, and then what a job
wrote is sent when it has ended, so that the database works on it while the next one runs. A
createRecord alone takes three round trips, and so does a group of them.

What waits is kept in *parts*, one for what opens the transaction and one for each job. A job gets
its savepoint with its first write. When the server refuses a statement of an earlier job's part,
nothing after it has been run: that job alone has failed (`take_failed`), the transaction goes back
to its savepoint, and the parts behind it are sent again. Nobody has seen an answer that depended
on the failed part, since answers end a batch. When a part of the running job is refused, the
statement that waited for the answer raises.
"""

import logging
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from pds.errors import Corrupt, StoreError, Unavailable
from pds.store.base import EngineConnection
from pds.store.clock import ClockInDoubt, SystemClock
from pds.store.convert_mark import READ_MARK, check_may_write
from pds.store.engine import FirstRead, Interrupted, Params, Row, Statement
from pds.store.events import insert_statements
from pds.store.postgres_link import (
    LOCK_TIMEOUT,
    ORPHAN_TIMEOUT,
    WRITE_TIMEOUT,
    Link,
    Message,
    PostgresSettings,
    encode_message,
)
from pds.store.postgres_listen import CHANNEL, encode_payload

MAX_WAITING_BYTES: Final = 512 * 1024
"""Statements of this size do not wait for one that needs an answer."""
RETRY_S: Final = 0.2

OPENING: Final = -1
"""The number of the part that opens the transaction."""
_MARK_AT: Final = 3
"""Where in that part the mark of a conversion is read; first reads of jobs follow."""
_SENT: Final = -1

_BEGIN: Final = Message("BEGIN")
_COMMIT: Final = Message("COMMIT")
_SAVEPOINT: Final = Message("SAVEPOINT job")
_RELEASE: Final = Message("RELEASE job")
_UNDO: Final = Message("ROLLBACK TO job")
_LOCK_COMMON: Final = Message("SELECT version FROM migration WHERE version = 1 FOR UPDATE")
_LOCK_ACCOUNTS: Final = (
    "SELECT aid FROM account WHERE aid = ANY (CAST(? AS bigint[])) ORDER BY aid FOR UPDATE"
)
_NOTE_GROUP: Final = (
    "INSERT INTO commit_group (node, group_id, begun_at) VALUES (?, ?, ?)"
    " ON CONFLICT (node) DO UPDATE SET group_id = excluded.group_id, begun_at = excluded.begun_at"
)
_FIND_GROUP: Final = (
    "INSERT INTO commit_group (node, group_id, begun_at) VALUES (?, ?, ?)"
    " ON CONFLICT (node) DO UPDATE SET begun_at = commit_group.begun_at RETURNING group_id"
)
_READ_SEQ: Final = "SELECT last_seq FROM seq WHERE id = 1"
_TAKE_SEQ: Final = Message(f"{_READ_SEQ} FOR UPDATE")
_SET_SEQ: Final = "UPDATE seq SET last_seq = ? WHERE id = 1 RETURNING last_seq"
_READ_MARK: Final = Message(READ_MARK)
_NOTIFY: Final = "SELECT pg_notify(?, ?)"
_READS: Final = re.compile(r"\s*SELECT\b", re.IGNORECASE)
_CHANGES: Final = re.compile(r"\s*(?:INSERT|UPDATE|DELETE)\b", re.IGNORECASE)
_ANSWERS: Final = re.compile(r"\bRETURNING\b", re.IGNORECASE)
MAX_REMEMBERED: Final = 4096

_log: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class _Part:
    """What waits to be sent for one job.

    `mark_at` is where in it the savepoint is set: `_SENT` when the server has it, None when the job
    has not written yet. `had_mark` says whether an earlier job's savepoint was there before.
    """

    job: int
    mark_at: int | None = None
    had_mark: bool = False
    messages: list[Message] = field(default_factory=list)


class PostgresWriter(EngineConnection):
    """The connection of the writer thread."""

    def __init__(self, conninfo: str, settings: PostgresSettings, node: str) -> None:
        session = {
            "statement_timeout": WRITE_TIMEOUT,
            "lock_timeout": LOCK_TIMEOUT,
            "idle_in_transaction_session_timeout": ORPHAN_TIMEOUT,
        }
        self.link = Link(conninfo, session)
        self._settings = settings
        self._node = node
        self._last_seq = 0
        self._pending_seq = 0
        self._group_id = b""
        self._unsettled: bytes | None = None
        self._was_committed = False
        self._is_begun = False
        self._shares = False
        self._has_mark = False
        self._is_broken = False
        self._has_sent = False
        self._taken_seq: int | None = None
        self._parts: list[_Part] = []
        self._waiting_bytes = 0
        self._failed: dict[int, StoreError] = {}
        self._opening_error: StoreError | None = None
        self._failed_alone = False
        self._fed = 0
        """Parts at the front that the server has already; it is not known how they went."""
        self._asked: Sequence[FirstRead] = ()
        self._known: dict[int, tuple[FirstRead, list[Row]]] = {}
        self._kinds: dict[str, _Kind] = {}
        self._closing_messages: list[Message] = []
        self._changed_accounts: list[int] = []
        self.clock_doubt: str | None = None
        """Set by the listener while the database's clock is too far from ours."""

    @property
    def locks_accounts(self) -> bool:
        """Yes: other nodes write too."""
        return True

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, or has been asked for."""
        if not self._is_begun:
            return False
        return self.link.is_open and (not self._has_sent or self.link.in_transaction)

    @property
    def opening_error(self) -> StoreError | None:
        """Why the accounts of the group could not be locked."""
        return self._opening_error

    @property
    def last_seq(self) -> int:
        """The highest number that this node has committed, or found at the start."""
        return self._last_seq

    def load_seq(self) -> None:
        """Read the highest number."""
        self._last_seq = max(self._last_seq, _one_number(self.link.execute(_READ_SEQ)))

    def expect_seq(self, seq: int) -> None:
        """Take note that the open transaction sets `last_seq` to this."""
        self._pending_seq = seq

    # Opening and closing

    def begin(self, accounts: Sequence[int] = ()) -> None:
        """Open the transaction, note its id and lock accounts, or what the others lock.

        All of it is sent with the first statement that needs an answer. The mark of a conversion
        is read last: who sets it waits for everybody who has noted an id.
        """
        if self.clock_doubt is not None:
            raise ClockInDoubt(self.clock_doubt)
        self._forget()
        self._pending_seq = self._last_seq
        self._group_id = secrets.token_bytes(16)
        self.link.ensure_open(self._settings.reconnect_s)
        noted = encode_message(_NOTE_GROUP, (self._node, self._group_id, SystemClock().now_us()))
        lock = _lock_accounts(accounts) if accounts else _LOCK_COMMON
        self._parts = [_Part(OPENING, messages=[_BEGIN, noted, lock, _READ_MARK]), _Part(0)]
        self._is_begun = True

    def foresee(self, reads: Sequence[FirstRead]) -> None:
        """Have the first reads of several jobs sent with what opens the transaction."""
        if len(reads) > 1:
            self._asked = reads
            self._parts[0].messages += (encode_message(read.sql, read.params) for read in reads)

    def commit(self) -> None:
        """Insert the events, notify and commit in one round trip.

        A lone job whose last writes fail is undone and told of by `take_failed`.

        Raises: Interrupted when the transaction is certainly not in the database; Unavailable
        when nobody knows.
        """
        if self._changed_accounts or self._closing_messages:
            payload = encode_payload(self._node, self._pending_seq, self._changed_accounts)
            self._closing_messages.append(encode_message(_NOTIFY, (CHANNEL, payload)))
        try:
            self._run((*self._closing_messages, _COMMIT), finishing=True)
        except StoreError as error:
            if self.link.is_open:  # the server answered, so it is rolled back
                failed_alone = self._failed_alone
                self.rollback()
                if failed_alone:
                    return
                raise Interrupted(str(error)) from error
            self._settle_outcome(error)
        else:
            if self.link.tag != b"COMMIT":
                self.rollback()
                raise Interrupted("the transaction had failed before its commit")
        self._forget(keep_failed=True)
        self._last_seq = self._pending_seq
        self.link.trouble = None

    def rollback(self) -> None:
        """Undo the transaction, if one is open."""
        self._forget(keep_failed=True)
        self.link.rollback()

    def _forget(self, *, keep_failed: bool = False) -> None:
        """Drop what belongs to a transaction that has ended."""
        self._is_begun = self._shares = self._has_mark = False
        self._is_broken = self._has_sent = self._failed_alone = False
        self._taken_seq = None
        self._parts = []
        self._fed = 0
        self._asked = ()
        self._known = {}
        self._waiting_bytes = 0
        self._opening_error = None
        self._closing_messages = []
        self._changed_accounts = []
        if not keep_failed:
            self._failed = {}

    def _settle_outcome(self, cause: StoreError) -> None:
        """Find out what became of the COMMIT whose answer was lost; return if it took place."""
        deadline = time.monotonic() + self._settings.settle_s
        while True:
            try:
                self.link.ensure_open()
                is_committed = self._find_group() == self._group_id
            except StoreError as error:
                if time.monotonic() >= deadline:
                    self._unsettled = self._group_id
                    raise Unavailable(f"the outcome is unknown: {error}") from cause
                time.sleep(RETRY_S)
                continue
            _log.warning("store.commit_settled", extra={"committed": is_committed})
            if not is_committed:
                raise Interrupted(str(cause)) from cause
            return

    def _find_group(self) -> bytes:
        """Return the id of the group that this node committed last.

        Waits for a transaction of ours that the server has not ended yet.
        """
        params = (self._node, b"", SystemClock().now_us())
        return bytes(self.link.execute(_FIND_GROUP, params)[0][0])

    def reopen(self) -> list[Statement]:
        """Start over with a new connection, after a COMMIT whose outcome is unknown."""
        self._forget()
        self.link.open()
        if self._unsettled is not None:
            self._was_committed = self._find_group() == self._unsettled
            self._unsettled = None
        self.load_seq()
        self.link.trouble = None
        return []

    def take_found_committed(self) -> bool:
        """Whether `reopen` found the group whose outcome was unknown; asked once."""
        found, self._was_committed = self._was_committed, False
        return found

    # Jobs

    def savepoint(self) -> None:
        """Begin the next job of several; its mark is set with its first write."""
        if self._shares:
            self._parts.append(_Part(self._parts[-1].job + 1))
        self._shares = True

    def release_savepoint(self) -> None:
        """Keep what the job did; the database gets to work on it while the next job runs."""
        if self._parts[0].job != OPENING:
            unfed = self._parts[self._fed :]
            self.link.feed([message for part in unfed for message in part.messages])
            self._fed = len(self._parts)

    def undo_savepoint(self) -> None:
        """Undo what the job did: what waits is dropped, what was sent is undone with what comes.

        Raises: StoreError when that is not possible.
        """
        if self._is_broken:
            raise StoreError("the transaction has failed")
        part = self._parts[-1]
        if part.mark_at == _SENT:
            part.messages = [_UNDO]
        elif part.mark_at is not None:
            self._has_mark = part.had_mark
            self._parts[-1] = _Part(part.job)

    def execute(self, sql: str, params: Params = ()) -> list[Row]:
        """Run one statement and return all its rows; a write that returns none waits."""
        message = encode_message(sql, params)
        kind = self._kinds.get(sql)
        if kind is None:
            if len(self._kinds) >= MAX_REMEMBERED:
                self._kinds.clear()
            kind = self._kinds[sql] = _kind_of(sql)
        if kind is _Kind.QUIET_WRITE:
            self._wait_with(message)
            return []
        if kind is _Kind.WRITE:
            self._mark()
        elif self._asked:
            if self._parts[0].job == OPENING:
                self._run(())
            read, rows = self._known.pop(self._parts[-1].job, (None, []))
            if read == (sql, params):
                return rows
        return self._run((message,))

    def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        """Run one statement for each row of parameters; they wait."""
        for row in rows:
            self._wait_with(encode_message(sql, row))

    def lock_accounts(self, aids: Iterable[int]) -> None:
        """Lock further accounts inside the transaction, before what is read next."""
        self._wait_with(_lock_accounts(sorted(set(aids))))

    def announce(self, aids: Sequence[int]) -> None:
        """Have other nodes told that these accounts changed."""
        self._changed_accounts = sorted(set(aids))

    # Numbers

    def settle(self, *, takes_numbers: bool) -> None:
        """Have all jobs' statements run and the row of numbers locked, in one round trip.

        Without numbers they go with the COMMIT, unless it is not known whether there may be one.
        """
        try:
            if takes_numbers:
                self._taken_seq = _one_number(self._run((_TAKE_SEQ,), finishing=True))
            elif not self._has_sent:
                self._run((), finishing=True)
        except StoreError:
            if not self._failed_alone:
                raise

    def take_failed(self) -> dict[int, StoreError]:
        """Return which jobs failed after they had ended, by their number, and why."""
        failed, self._failed = self._failed, {}
        return failed

    def allocate_seq(self, count: int, now_us: int) -> tuple[int, int, Statement]:
        """Take `count` numbers; the row stays locked until the commit."""
        previous = self._taken_seq
        if previous is None:
            raise StoreError("numbers are taken after `settle`")
        first = max(previous + 1, now_us)
        params = (first + count - 1,)
        self._closing_messages.append(encode_message(_SET_SEQ, params))
        self._pending_seq = first + count - 1
        return previous, first, Statement(_SET_SEQ, (params,))

    def insert_events(self, rows: Sequence[tuple[int, int, str, int, bytes]]) -> list[Statement]:
        """Have the rows inserted with the commit, many to a statement."""
        statements = insert_statements(rows)
        for statement in statements:
            self._closing_messages.append(encode_message(statement.sql, statement.rows[0]))
        return statements

    def after_group(self) -> None:
        """Do nothing: the database looks after its log."""

    def close(self) -> None:
        """Close the connection."""
        self.link.close()

    # Sending

    def _mark(self) -> None:
        """Set the job's savepoint, unless it is there or the job is alone."""
        part = self._parts[-1]
        self._known.pop(part.job, None)
        if not self._shares or part.mark_at is not None:
            return
        part.had_mark = self._has_mark
        if self._has_mark:
            part.messages.append(_RELEASE)
        part.mark_at = len(part.messages)
        part.messages.append(_SAVEPOINT)
        self._has_mark = True

    def _wait_with(self, message: Message) -> None:
        """Keep a statement until one that needs an answer, or until much is kept."""
        self._mark()
        self._parts[-1].messages.append(message)
        self._waiting_bytes += message.size
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._run(())

    def _run(self, more: Sequence[Message], *, finishing: bool = False) -> list[Row]:
        """Send what waits and `more`, and return the rows of the last.

        `finishing` says that no job runs any more. Raises: the failure of the running job's own
        statement, of `more`, or of the whole transaction.
        """
        if self._is_broken:
            raise Interrupted("the transaction has failed")
        while True:
            unfed = self._parts[self._fed :]
            self._fed, self._has_sent = 0, True
            try:
                batch = (message for part in unfed for message in part.messages)
                rows = self.link.run((*batch, *more))
            except StoreError as error:
                if self._goes_on(error, finishing=finishing):
                    continue
                raise
            if self._parts[0].job == OPENING:
                self._check_opening()
            last = self._parts[-1]
            mark_at = None if last.mark_at is None else _SENT
            self._parts = [_Part(last.job, mark_at, last.had_mark)]
            self._waiting_bytes = 0
            return rows

    def _check_opening(self) -> None:
        """Look whether there may be writes at all; raises Paused."""
        begun = {part.job for part in self._parts if part.messages}
        for job, read in enumerate(self._asked):
            if job not in begun:
                self._known[job] = read, self.link.rows_of(_MARK_AT + 1 + job)
        try:
            check_may_write(self.link.rows_of(_MARK_AT))
        except StoreError as error:
            self._opening_error = error
            self._is_broken = True
            raise

    def _goes_on(self, error: StoreError, *, finishing: bool) -> bool:
        """Decide whom a failure belongs to; True when what is left may be sent again."""
        at = self.link.failed_at
        if at is None or isinstance(error, Interrupted):
            self._is_broken = True
            return False
        for index, part in enumerate(self._parts):  # noqa: B007  both are used below
            if at < len(part.messages):
                is_waiting = True
                break
            at -= len(part.messages)
        else:  # one of `more`, which belongs to the last job
            is_waiting, at = False, len(part.messages)
        is_undoable = part.mark_at is not None and at > part.mark_at
        if part.job == OPENING:
            if at > _MARK_AT:  # a read of a job that has not begun: each is run alone
                self._is_broken = True
                raise Interrupted(str(error)) from error
            self._opening_error = error
        elif is_waiting and part.messages[at] is _UNDO:
            pass
        elif not finishing and part is self._parts[-1]:
            if is_undoable:
                self._parts = [_Part(part.job, _SENT)]
                self._waiting_bytes = 0
                return False
        elif is_waiting and is_undoable:
            self._failed[part.job] = error
            rest = self._parts[index + 1 :]
            self._parts = [_Part(part.job, _SENT, messages=[_UNDO]), *rest]
            return True
        elif is_waiting and not self._shares:
            self._failed[part.job] = error
            self._failed_alone = True
        self._is_broken = True
        return False


class _Kind(Enum):
    """What a statement is to the writer."""

    READ = "reads"
    WRITE = "writes and answers"
    QUIET_WRITE = "writes, and nobody reads an answer"


def _kind_of(sql: str) -> _Kind:
    if _READS.match(sql):
        return _Kind.READ
    if _CHANGES.match(sql) and not _ANSWERS.search(sql):
        return _Kind.QUIET_WRITE
    return _Kind.WRITE


def _one_number(rows: list[Row]) -> int:
    if not rows:
        raise Corrupt("the row that numbers events is missing")
    return int(rows[0][0])


def _lock_accounts(aids: Sequence[int]) -> Message:
    """The statement that locks rows of accounts; the numbers go in as one array."""
    return encode_message(_LOCK_ACCOUNTS, ("{" + ",".join(map(str, aids)) + "}",))
