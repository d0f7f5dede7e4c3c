"""The audit trail: every act of an operator or moderator leaves a row, in the act's transaction.

A service that changes something on behalf of an operator is given an `Order`: who gave it, an
optional note, and whether it is only a rehearsal. Inside its transaction it calls `note_act` with
what was before and what is after; passwords, tokens, keys and the text of mails never go in there.

A rehearsal runs the same job and throws the transaction away at the end (`carry_out`), so what it
says would happen is what would happen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar, TypeVarTuple

from pds.protocol.data import Json, dump_json, parse_json
from pds.protocol.syntax import format_datetime
from pds.services.principal import Principal, ReplayId
from pds.services.used_tokens import refuse_replay
from pds.store.audit import AuditRow, insert_audit, list_audit
from pds.store.engine import Engine, Txn

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

ADMIN_ACTOR: Final = "admin"
"""The actor of acts under the admin password; a moderator is named by the DID of its service."""
CLI_PREFIX: Final = "cli:"
MAX_NOTE_CHARS: Final = 1000
MAX_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Order:
    """Who wants something done. `actor` is `admin`, a DID, or `cli:` with a name.

    `replay` is there when the credential works once: the act uses it up, at all nodes.
    """

    actor: str
    note: str | None = None
    is_rehearsal: bool = False
    replay: ReplayId | None = None


def order_of(principal: Principal | None, *, note: str | None = None) -> Order:
    """Return the order of an authenticated operator or moderator."""
    if principal is None:
        return Order(ADMIN_ACTOR, note)
    return Order(principal.did or ADMIN_ACTOR, note, replay=principal.replay)


def note_act(
    txn: Txn,
    order: Order,
    act: str,
    subject: str,
    *,
    now_us: int,
    before: Mapping[str, Json] | None = None,
    after: Mapping[str, Json] | None = None,
) -> int:
    """Add the row of an act inside its transaction and return the row's number."""
    return insert_audit(
        txn,
        at=now_us,
        actor=order.actor,
        act=act,
        subject=subject,
        before=None if before is None else dump_json(before),
        after=None if after is None else dump_json(after),
        note=None if order.note is None else order.note[:MAX_NOTE_CHARS],
    )


class Rehearsed(Exception):
    """Ends the transaction of a rehearsal; carries what would have been done."""

    def __init__(self, result: object) -> None:
        super().__init__()
        self.result = result


async def carry_out(
    engine: Engine,
    label: str,
    order: Order,
    job: "Callable[[Txn, *Ts], T]",
    *args: *Ts,
    accounts: Sequence[int] = (),
) -> T:
    """Run a job of an order in one transaction; of a rehearsal nothing stays.

    Raises: what the job raises; RequestError `BadJwt` 401 for a credential that was used up.
    """

    def run(txn: Txn) -> T:
        # An expired token gets no further than authentication, so time does not matter here.
        refuse_replay(txn, order.replay, now_us=0)
        result = job(txn, *args)
        if order.is_rehearsal:
            raise Rehearsed(result)
        return result

    try:
        return await engine.transact(label, run, accounts=accounts)
    except Rehearsed as done:
        return done.result  # type: ignore[return-value]


class AuditTrail:
    """Lists what was done."""

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    async def list(
        self, *, subject: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[AuditRow], str | None]:
        """Return acts, the latest first, and the cursor if more follow.

        With the DID of an account also the acts about its records and blobs.
        """
        before_id = int(cursor) if cursor and cursor.isascii() and cursor.isdigit() else None
        count = max(1, min(limit, MAX_PAGE))

        def read(txn: Txn) -> list[AuditRow]:
            return list_audit(txn, subject=subject, before_id=before_id, limit=count + 1)

        rows = await self._engine.read("audit.list", read)
        more = str(rows[count - 1].audit_id) if len(rows) > count else None
        return rows[:count], more


def audit_view(row: AuditRow) -> dict[str, Json]:
    """Return a row as JSON for the operator."""
    view: dict[str, Json] = {
        "id": row.audit_id,
        "at": format_datetime(row.at),
        "actor": row.actor,
        "act": row.act,
        "subject": row.subject,
    }
    if row.before is not None:
        view["before"] = parse_json(row.before)
    if row.after is not None:
        view["after"] = parse_json(row.after)
    if row.note is not None:
        view["note"] = row.note
    return view
