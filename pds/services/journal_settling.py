"""Lines of the journal that are left over: when they are settled, and how that ends.

`account_journal` and `identity_journal` keep lines of acts that touch our database and the PLC
directory; this is what their settling has in common.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pds.store.clock import US_PER_S
from pds.store.journal import JournalRow

MAX_DOUBLINGS: Final = 16


class Settled(StrEnum):
    """What became of a journal row."""

    COMPLETED = "completed"
    UNDONE = "undone"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalSettings:
    """How long to wait for the directory, and for acts that may still be under way elsewhere."""

    plc_timeout_s: float = 10.0
    """Longest wait for the directory (promise A8)."""
    grace_s: float = 30.0
    """Age at which a row is nobody's; doubled with each attempt to settle it."""
    max_wait_s: float = 3600.0
    exclusive: bool = True
    """Whether no other process uses the database: then all rows found at the start are nobody's."""

    def is_due(self, row: JournalRow, now_us: int) -> bool:
        """Whether nobody can be at work on a row any more, and its last attempt is long ago."""
        doubled_s = self.grace_s * (1 << min(row.attempts, MAX_DOUBLINGS))
        return now_us - row.updated_at >= min(doubled_s, self.max_wait_s) * US_PER_S
