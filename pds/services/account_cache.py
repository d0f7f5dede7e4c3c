"""Bounded memory of facts that hang on an account, dropped the moment the account changes.

Every request must know who calls and whether the account still stands; asking the database each
time would cost a thread hop. So rows are remembered here, under these rules:

* whoever changes an account registers `forget_after(txn, aid)` in the same transaction. The engine
  runs it after the commit and before the change is answered, so on this node nobody ever sees the
  old state after the answer;
* a value read from a snapshot older than a change is never remembered (`ticket`);
* other nodes are told with the commit, and forget a moment later; entries are also dropped after
  `ttl_s`, the bound should that fail;
* the number of entries is bounded, least recently used first. Absence is never remembered.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from pds.store.accounts import Account, get_account, get_account_by_aid
from pds.store.engine import Engine, ForeignCommits, Txn

K = TypeVar("K")
V = TypeVar("V")

CAPACITY: Final = 60_000
"""Entries per cache; an account takes three (aid, DID, handle), about 1 KB together."""
TTL_S: Final = 30.0


class AidCache(Generic[K, V]):
    """A bounded map whose entries belong to accounts and fall with them. Event loop only."""

    def __init__(
        self,
        *,
        capacity: int = CAPACITY,
        ttl_s: float = TTL_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries: OrderedDict[K, tuple[int, V, float]] = OrderedDict()
        self._keys: dict[int, set[K]] = {}
        self._capacity = capacity
        self._ttl_s = ttl_s
        self._monotonic = monotonic
        self.ticket = 0
        """Take it before reading the store and give it to `put`: it changes with every `forget`."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Return what is remembered and fresh."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[2] < self._monotonic():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry[1]

    def put(self, key: K, aid: int, value: V, *, ticket: int) -> None:
        """Remember `value` unless something was forgotten since `ticket` was taken."""
        if ticket != self.ticket:
            return
        self._drop(key)
        self._entries[key] = (aid, value, self._monotonic() + self._ttl_s)
        self._keys.setdefault(aid, set()).add(key)
        while len(self._entries) > self._capacity:
            self._drop(next(iter(self._entries)))

    def forget(self, aid: int) -> None:
        """Drop everything that hangs on this account."""
        self.ticket += 1
        for key in self._keys.pop(aid, ()):
            del self._entries[key]

    def forget_foreign(self, commits: ForeignCommits) -> None:
        """Drop what hangs on accounts that other nodes changed."""
        if commits.aids is None:
            self.ticket += 1
        for aid in list(self._keys) if commits.aids is None else commits.aids:
            self.forget(aid)

    def forget_key(self, key: K) -> None:
        """Drop one entry."""
        self.ticket += 1
        self._drop(key)

    def _drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        keys = self._keys[entry[0]]
        keys.discard(key)
        if not keys:
            del self._keys[entry[0]]


class AccountCache:
    """Account rows by `aid`, DID and handle."""

    def __init__(
        self,
        engine: Engine,
        *,
        capacity: int = CAPACITY,
        ttl_s: float = TTL_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._rows: AidCache[int | str, Account] = AidCache(
            capacity=capacity, ttl_s=ttl_s, monotonic=monotonic
        )
        engine.add_foreign_hook(self._rows.forget_foreign)

    def peek(self, aid: int) -> Account | None:
        """Return the account if it is in memory."""
        return self._rows.get(aid)

    async def get(self, did_or_handle: str) -> Account | None:
        """Return the account named by a DID or a (lower-case) handle, in any state."""
        known = self._rows.get(did_or_handle)
        if known is not None:
            return known
        ticket = self._rows.ticket
        return self.remember(
            await self._engine.read("account.get", get_account, did_or_handle), ticket=ticket
        )

    async def get_by_aid(self, aid: int) -> Account | None:
        """Return the account with this number, in any state."""
        known = self._rows.get(aid)
        if known is not None:
            return known
        ticket = self._rows.ticket
        return self.remember(
            await self._engine.read("account.get", get_account_by_aid, aid), ticket=ticket
        )

    @property
    def ticket(self) -> int:
        """See `AidCache.ticket`."""
        return self._rows.ticket

    def remember(self, account: Account | None, *, ticket: int) -> Account | None:
        """Keep a row that was read after `ticket` was taken, and return it."""
        if account is not None:
            for key in (account.aid, account.did, account.handle):
                if key is not None:
                    self._rows.put(key, account.aid, account, ticket=ticket)
        return account

    def forget(self, aid: int) -> None:
        """Drop an account from memory."""
        self._rows.forget(aid)

    def forget_after(self, txn: Txn, aid: int) -> None:
        """Drop an account from memory, here and on other nodes, once its change is committed."""
        txn.on_commit(lambda: self.forget(aid))
        txn.announce(aid)
