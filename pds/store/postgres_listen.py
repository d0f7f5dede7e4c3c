"""What other nodes commit: notifications, with a poll as the floor.

A thread listens on a connection of its own. A notification names the node, the last number of its
group and the accounts that it changed. Twice a second the last number is read besides, and the
database's clock. After a lost connection, notifications may be missing: then the node is told to
forget whatever it remembers, and what it missed is found by the number.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import psycopg

from pds.errors import StoreError
from pds.store.engine import ForeignCommits
from pds.store.postgres_link import Link

CHANNEL: Final = "freehold"
MAX_PAYLOAD: Final = 7900
"""PostgreSQL takes less than 8,000 bytes."""
RETRY_S: Final = 0.5
END_S: Final = 0.5
"""How long closing may wait for the thread."""

_LOOK: Final = (
    "SELECT last_seq, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    " FROM seq WHERE id = 1"
)

_log: Final = logging.getLogger(__name__)


def encode_payload(node: str, seq: int, aids: Sequence[int]) -> str:
    """Return what a commit tells the other nodes; `*` stands for any account."""
    text = f"{node} {seq} {','.join(map(str, aids))}"
    return text if len(text) <= MAX_PAYLOAD else f"{node} {seq} *"


def decode_payloads(payloads: Iterable[str], node: str) -> ForeignCommits | None:
    """Return what others than `node` tell; None when all of it is our own.

    A payload that nobody of ours wrote counts as one that says that anything may have changed.
    """
    last_seq, aids, is_any, is_foreign = 0, dict[int, None](), False, False
    for payload in payloads:
        sender, _, rest = payload.partition(" ")
        if sender == node:
            continue
        is_foreign = True
        seq, _, names = rest.partition(" ")
        try:
            last_seq = max(last_seq, int(seq))
            aids.update((int(name), None) for name in names.split(",") if name)
        except ValueError:
            is_any = True
    if not is_foreign:
        return None
    return ForeignCommits(last_seq, None if is_any else tuple(aids))


class Listener:
    """The thread that listens, and what it knows."""

    def __init__(
        self,
        link: Link,
        *,
        node: str,
        poll_s: float,
        last_seq: int,
        known_seq: Callable[[], int],
        tell: Callable[[ForeignCommits], None],
        look: Callable[[int, int], None],
    ) -> None:
        self._link = link
        self._node = node
        self._poll_s = poll_s
        self._known_seq = known_seq
        self._tell = tell
        self._look = look
        self._ending = threading.Event()
        self.last_seq = last_seq
        self.trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="store-listener", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self) -> None:
        """End the thread and close its connection."""
        self._ending.set()
        self._thread.join()
        self._link.close()

    def _run(self) -> None:
        is_first = True
        while not self._ending.is_set():
            try:
                self._listen(is_first=is_first)
            except (StoreError, psycopg.Error) as error:
                self._link.close()
                self.trouble = f"other nodes' commits are not heard: {error}".strip()
                _log.warning("store.listener_lost", extra={"reason": str(error)})
            except Exception:  # a mistake of ours must not end the only listener
                self._link.close()
                _log.exception("store.listener_failed")
            is_first = False
            self._ending.wait(RETRY_S)

    def _listen(self, *, is_first: bool) -> None:
        """Pass on what is heard until the end, or until the connection is lost."""
        self._link.open()
        self._link.execute(f"LISTEN {CHANNEL}")
        if not is_first:  # notifications may be lost
            self._pass_on(ForeignCommits(self._read(), None))
        look_at = 0.0
        wait_s = min(self._poll_s, END_S)
        while not self._ending.is_set():
            if time.monotonic() >= look_at:
                last_seq = self._read()
                if last_seq > max(self.last_seq, self._known_seq()):
                    self._pass_on(ForeignCommits(last_seq, ()))
                self.trouble = None
                look_at = time.monotonic() + self._poll_s
            commits = decode_payloads(self._link.take_notices(wait_s), self._node)
            if commits is not None:
                self._pass_on(commits)

    def _pass_on(self, commits: ForeignCommits) -> None:
        self.last_seq = max(self.last_seq, commits.last_seq)
        self._tell(commits)

    def _read(self) -> int:
        """Return the last number, and have the clock looked at."""
        before_ns = time.monotonic_ns()
        last_seq, database_us = self._link.execute(_LOOK)[0]
        self._look(int(database_us), (time.monotonic_ns() - before_ns) // 1000)
        return int(last_seq)
