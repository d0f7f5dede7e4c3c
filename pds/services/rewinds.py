"""After a restore from an old copy: tell readers of all repos that may have gone on since.

A relay that has seen a number which this database never gave out has read a later state than the
one that is here: the database was rewound. Which repos had been written to in between nobody can
tell, so all active ones are stated again, with a new rev and `#sync`; readers compare the trees and
fetch what differs (promise A3, ACC-65, ACC-66).

That a rewind was seen is noted in the database before anything else, and the work is done in small
jobs by the schedule: a crash in between loses nothing.
"""

from typing import Final

from pds.log import get_logger
from pds.services.account_states import restate_with_sync
from pds.services.repo_txn import Moment
from pds.store.accounts import list_accounts
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.keystore import Keystore
from pds.store.rewinds import (
    delete_restated_aid,
    get_restated_aid,
    has_event,
    put_restated_aid,
)

PAGE_ACCOUNTS: Final = 50
"""Of one job: a signature and a row each."""

_log: Final = get_logger(__name__)


class Rewinds:
    """Notes rewinds, and states repos again."""

    def __init__(self, *, engine: Engine, clock: Clock, clock_id: int, keystore: Keystore) -> None:
        self._engine = engine
        self._clock = clock
        self._clock_id = clock_id
        self._keystore = keystore

    async def note(self, seen_seq: int, *, opened_seq: int) -> bool:
        """Compare what a relay has seen with this database; return whether it was rewound.

        `opened_seq` is the last number when the database was opened. With several nodes others may
        have gone on since: then the event that the relay has seen is here.
        """
        if seen_seq <= opened_seq:
            return False
        is_rewound = await self._engine.transact("rewind.note", _note, seen_seq)
        if is_rewound:
            _log.warning("repo.rewound", seen_seq=seen_seq, opened_seq=opened_seq)
        return is_rewound

    async def restate(self) -> int:
        """State all active repos again if a rewind was noted; return how many."""
        restated = 0
        while True:
            count = await self._engine.transact(
                "rewind.restate",
                _restate_page,
                self._keystore,
                Moment(self._clock.now_us(), self._clock_id),
                bulk=True,
            )
            if count is None:
                return restated
            restated += count


def _note(txn: Txn, seen_seq: int) -> bool:
    if has_event(txn, seen_seq):
        return False
    put_restated_aid(txn, 0)
    return True


def _restate_page(txn: Txn, keystore: Keystore, moment: Moment) -> int | None:
    """State the next repos again; None when there are none left, or no rewind was noted."""
    after_aid = get_restated_aid(txn)
    if after_aid is None:
        return None
    page = list_accounts(txn, after_aid=after_aid, limit=PAGE_ACCOUNTS)
    if not page:
        delete_restated_aid(txn)
        return None
    txn.lock_accounts(account.aid for account in page)
    restated = sum(restate_with_sync(txn, keystore, account.aid, moment) for account in page)
    put_restated_aid(txn, page[-1].aid)
    return restated
