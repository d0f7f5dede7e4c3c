"""Accounts whose identity was found not to fit, and how far the look at all of them has come.

Uses rows of `account_choice` named `identity_trouble`, one per account in trouble, so they go with
the account; and the fact `identity_look`.
"""

from dataclasses import dataclass
from typing import Final

from pds.store.engine import Txn

_NAME: Final = "identity_trouble"
_LOOK: Final = "identity_look"


@dataclass(frozen=True, slots=True)
class Trouble:
    """What was found, since when, and whether it has had its consequence."""

    kind: str
    since_us: int
    is_settled: bool


@dataclass(frozen=True, slots=True)
class Look:
    """The look at all accounts: when this round began, and the account that was seen last."""

    started_us: int
    after_aid: int
    is_over: bool


def get_trouble(txn: Txn, aid: int) -> Trouble | None:
    """Return the trouble of an account."""
    row = txn.read_one("SELECT value FROM account_choice WHERE aid = ? AND name = ?", (aid, _NAME))
    if row is None:
        return None
    kind, since, settled = bytes(row[0]).decode().split(" ")
    return Trouble(kind, int(since), settled == "1")


def put_trouble(txn: Txn, aid: int, trouble: Trouble) -> None:
    """Note the trouble of an account, over what was noted before."""
    value = f"{trouble.kind} {trouble.since_us} {int(trouble.is_settled)}".encode()
    txn.write(
        "INSERT INTO account_choice (aid, name, value) VALUES (?, ?, ?)"
        " ON CONFLICT (aid, name) DO UPDATE SET value = excluded.value",
        (aid, _NAME, value),
    )


def delete_trouble(txn: Txn, aid: int) -> None:
    """Note that the identity of an account fits again."""
    txn.write("DELETE FROM account_choice WHERE aid = ? AND name = ?", (aid, _NAME))


def get_look(txn: Txn) -> Look | None:
    """Return how far the look at all accounts has come; None before the first."""
    row = txn.read_one("SELECT value FROM fact WHERE name = ?", (_LOOK,))
    if row is None:
        return None
    started, after, over = bytes(row[0]).decode().split(" ")
    return Look(int(started), int(after), over == "1")


def put_look(txn: Txn, look: Look) -> None:
    """Note how far the look at all accounts has come."""
    value = f"{look.started_us} {look.after_aid} {int(look.is_over)}".encode()
    txn.write(
        "INSERT INTO fact (name, value) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (_LOOK, value),
    )
