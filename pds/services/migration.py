"""Moves of whole accounts, in and out: started, held by a lease, taken up again after a crash.

A move is a row (`store/moves`) and a task of one node that holds it by a lease. Whoever wants it
gives the order, and what is needed now and then: a password for one login, a code, a decision; the
rest the server does by itself, over crashes of either side. Pages and commands use the same
methods; each returns the move as `migration_state.view_move` shows it.

`start_in` and `start_out` for a DID whose move is open go on with it, so that the answer to almost
any failure is to give the same order again.

What may be done with an account is checked here: who gives an order is the operator, or has shown
the password of the account that moves out; who moves in shows the key of the DID (ACC-20).

Spec: (ACC-20..24, ACC-40..43, ACC-50..59, ACC-63)
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from pds.errors import Conflict, RequestError, StoreError
from pds.log import get_logger
from pds.protocol.data import Json
from pds.protocol.diddoc import parse_origin
from pds.protocol.oauth.answers import Redirect, parse_redirect
from pds.protocol.oauth.errors import OAuthInvalid
from pds.protocol.plc import PlcError, parse_operation
from pds.protocol.syntax import Did
from pds.services import migration_in, migration_out, migration_plan, migration_sign_in
from pds.services.audit import Order, note_act
from pds.services.migration_drive import attempt, drive, is_put_off
from pds.services.migration_hold import Hold, busy_problem
from pds.services.migration_problems import Code, MoveProblem
from pds.services.migration_session import ALL_SCOPES
from pds.services.migration_state import (
    US_PER_S,
    Direction,
    MoveState,
    Status,
    Step,
    decode_state,
    encode_state,
    open_secrets,
    view_move,
)
from pds.services.migration_work import Given, LeaseLost, MigrationParts, Work
from pds.store.engine import Txn
from pds.store.moves import (
    MoveRow,
    delete_old_moves,
    get_last_move,
    get_move,
    get_open_move,
    insert_move,
    list_moves,
    list_running_moves,
)

LEASE_S: Final = 60.0
PATIENCE: Final = 40
PATIENCE_S: Final = 0.25
"""How often, and after which pauses, the answer of a browser is offered to a move that is held."""
KEEP_OVER_US: Final = 90 * 86_400 * US_PER_S
"""How long a move that is over can be looked at."""

_log: Final = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveInRequest:
    """Whose account shall come, and how."""

    account: str
    handle: str | None = None
    email: str | None = None
    leaves_old: bool = True
    keeps_old_keys: bool = False
    by_operator: bool = True
    given: Given = field(default_factory=Given)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveOutRequest:
    """Whose account shall go, and where."""

    account: str
    url: str
    handle: str | None = None
    email: str | None = None
    leaves_old: bool = True
    keeps_old_keys: bool = False
    by_operator: bool = False
    owner_password: str | None = None
    """Here; not needed if the operator orders the move."""
    given: Given = field(default_factory=Given)


class Migration:
    """Starts moves, works on them, and tells how far they are."""

    def __init__(self, parts: MigrationParts, *, lease_s: float = LEASE_S) -> None:
        self._parts = parts
        self._lease_s = lease_s
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._busy: set[Did] = set()

    @property
    def parts(self) -> MigrationParts:
        """What moves are made of."""
        return self._parts

    # Orders

    async def plan_in(self, account: str, *, handle: str | None = None) -> dict[str, Json]:
        """Say what would move here; nothing is changed. Raises: RequestError."""
        try:
            return await migration_plan.plan_in(self._parts, account, handle)
        except MoveProblem as problem:
            raise problem.as_refusal() from problem

    async def start_in(self, request: MoveInRequest) -> dict[str, Json]:
        """Begin a move to this host, or go on with the one that is open.

        Raises: RequestError with the code of what is wrong.
        """
        try:
            traveller = await migration_plan.find(self._parts, request.account)
            open_row = await self._open_row(traveller.did)
            if open_row is not None and open_row.step != Step.OPEN:
                return await self._go_on(open_row, request.given, expected=Direction.IN)
            handle, _, _ = await migration_plan.choose_handle(
                self._parts, traveller, request.handle
            )
            if handle is None:
                raise MoveProblem(
                    Code.HANDLE_NEEDED, "There is no handle to keep", "Choose one (--handle)"
                )
            if traveller.url in (self._parts.public_url, *self._parts.former_urls):
                raise MoveProblem(
                    Code.ALREADY_HERE, "The identity names this host", "There is nothing to move"
                )
            state = MoveState(
                did=traveller.did,
                other_url=traveller.url,
                old_handle=traveller.handle,
                handle=handle,
                email=request.email,
                leaves_old=request.leaves_old,
                keeps_old_keys=request.keeps_old_keys,
                accepts_missing=request.given.accepts_missing,
                by_operator=request.by_operator,
            )
            return await self._begin(Direction.IN, state, request.given, open_row)
        except MoveProblem as problem:
            raise problem.as_refusal() from problem

    async def start_out(self, request: MoveOutRequest) -> dict[str, Json]:
        """Begin a move to another host, or go on with the one that is open.

        Raises: RequestError with the code of what is wrong.
        """
        account = await self._parts.accounts.lookup(request.account.strip().removeprefix("@"))
        if account is None:
            raise RequestError(Code.ACCOUNT_NOT_FOUND, "There is no such account here")
        if not request.by_operator:
            await self._parts.sessions.check_password(account.did, request.owner_password or "")
        url = parse_origin(request.url)
        if url is None or url in (self._parts.public_url, *self._parts.former_urls):
            raise RequestError("InvalidRequest", "The new host must be the URL of another host")
        try:
            open_row = await self._open_row(account.did)
            if open_row is not None and open_row.step != Step.OPEN:
                return await self._go_on(open_row, request.given, expected=Direction.OUT)
            if account.deactivated_at is not None:
                raise MoveProblem(
                    Code.ACCOUNT_REFUSED,
                    "The account is deactivated here",
                    "Activate it first; who has moved already moves from where the account is",
                )
            is_ours = account.handle is None or self._parts.handles.is_ours(account.handle)
            handle = request.handle or (None if is_ours else account.handle)
            if handle is None:
                raise MoveProblem(
                    Code.HANDLE_NEEDED,
                    f"{account.handle} belongs to this host and cannot be kept",
                    "Choose one of the new host, or of your own domain (--handle)",
                )
            state = MoveState(
                did=account.did,
                other_url=url,
                old_handle=account.handle,
                handle=handle.strip().lower().removeprefix("@"),
                email=request.email or account.email,
                aid=account.aid,
                leaves_old=request.leaves_old,
                keeps_old_keys=request.keeps_old_keys,
                accepts_missing=request.given.accepts_missing,
                by_operator=request.by_operator,
            )
            return await self._begin(Direction.OUT, state, request.given, open_row)
        except MoveProblem as problem:
            raise problem.as_refusal() from problem

    async def go_on(self, account: str, given: Given | None = None) -> dict[str, Json]:
        """Give what a move waits for, and have it go on. Raises: RequestError."""
        row = await self._need_open(account)
        try:
            return await self._go_on(row, given or Given())
        except MoveProblem as problem:
            raise problem.as_refusal() from problem

    async def finish_sign_in(self, query: str) -> dict[str, Json]:
        """Take what a browser brought back from the other host, and let the move go on.

        `query` is that of the address at which it ended. Raises: RequestError.
        """
        try:
            redirect = parse_redirect(query)
        except OAuthInvalid as error:
            raise RequestError("InvalidRequest", f"That is no end of a sign-in: {error}") from error
        state = migration_sign_in.parse_state(redirect.state)
        row = await self._parts.engine.read("move.get", get_move, state.move_id)
        if row is None or not migration_sign_in.is_awaited(
            open_secrets(self._parts.keystore, row), state
        ):
            raise migration_sign_in.unknown_sign_in()
        try:
            async with self._held_soon(row.move_id) as work:
                await self._accept(work, redirect, state)
        except MoveProblem as problem:
            raise problem.as_refusal() from problem
        await self._spawn(row.move_id)
        return await self._view(row.move_id)

    async def _accept(
        self, work: Work, redirect: Redirect, state: migration_sign_in.StateParam
    ) -> None:
        """Raises: MoveProblem, which is noted; RequestError."""
        given = Given()

        async def accept(work: Work) -> None:
            nonlocal given
            given = await migration_sign_in.accept(work, redirect, state)

        try:
            await attempt(work, accept)
        except MoveProblem as problem:
            await _wait(work, problem)
            raise
        if work.step is Step.OPEN:
            await self._open_held(work, given)
            return
        work.state.note_progress()
        work.status = Status.RUNNING
        await work.save()

    async def undo(self, account: str) -> dict[str, Json]:
        """Undo a move whose account is not active at its new host yet. Raises: RequestError."""
        row = await self._need_open(account)
        await self._stop_task(row.move_id)
        try:
            async with self._held(row.move_id) as work:
                side = migration_in if work.direction is Direction.IN else migration_out
                await attempt(work, side.undo)
                await migration_sign_in.end(work)
                work.status = Status.UNDONE
                work.state.note_progress()
                await work.save(is_over=True)
        except MoveProblem as problem:
            raise problem.as_refusal() from problem
        return await self._view(row.move_id)

    async def get(self, account: str) -> dict[str, Json]:
        """Return the newest move of an account. Raises: RequestError."""
        row = await self._last_row(account)
        return view_move(row, decode_state(row))

    async def look(self, account: str) -> dict[str, Json]:
        """Return the newest move of an account, and see to it that somebody works on it.

        Where nothing is timed (a command without a server) nobody else would. Raises: RequestError.
        """
        row = await self._last_row(account)
        await self._attend(row)
        return view_move(row, decode_state(row))

    async def list_all(
        self, *, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[dict[str, Json]], str | None]:
        """Return moves, newest first, and where the next page begins."""
        before = int(cursor) if cursor is not None and cursor.isdigit() else None

        def read(txn: Txn) -> list[MoveRow]:
            return list_moves(txn, before=before, limit=limit + 1)

        rows = await self._parts.engine.read("move.list", read)
        views = [view_move(row, decode_state(row)) for row in rows[:limit]]
        return views, str(rows[limit - 1].move_id) if len(rows) > limit else None

    async def note(self, order: Order, act: str, view: Mapping[str, Json]) -> None:
        """Note an order in the audit trail."""
        after = {name: view[name] for name in ("direction", "otherHost", "step", "status")}

        def insert(txn: Txn, now_us: int) -> None:
            note_act(txn, order, act, str(view["did"]), now_us=now_us, after=after)

        await self._parts.engine.transact("move.note", insert, self._parts.clock.now_us())

    def client_metadata(self, name: str = "") -> dict[str, Any] | None:
        """The document by which other hosts know this one, asked by a name, as an OAuth client."""
        return self._parts.oauth.document(ALL_SCOPES, name=name)

    # Work

    async def resume(self) -> int:
        """Take up moves that nobody works on; return how many. A job of every node."""
        rows = await self._parts.engine.read("move.running", list_running_moves)
        begun = 0
        for row in rows:
            if len(self._tasks) >= max(self._parts.settings.parallel, 1):
                break
            begun += await self._attend(row)
        return begun

    async def sweep(self) -> int:
        """Drop moves that were over long ago; return how many."""
        before_us = self._parts.clock.now_us() - KEEP_OVER_US
        return await self._parts.engine.transact(
            "move.sweep", delete_old_moves, before_us, bulk=True
        )

    async def settle(self, account: str) -> dict[str, Json]:
        """Wait until this node's work on a move has stopped, and return the move."""
        did = await self._did(account)
        row = await self._parts.engine.read("move.get", get_last_move, did)
        task = None if row is None else self._tasks.get(row.move_id)
        if task is not None:
            await asyncio.wait([task])
        return await self.get(account)

    async def close(self) -> None:
        """Stop working; whoever comes next goes on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Inside

    async def _begin(
        self, direction: Direction, state: MoveState, given: Given, row: MoveRow | None
    ) -> dict[str, Json]:
        """Write the row, or take the one of an attempt that did not get far, and open the account.

        The row is there before anything is made anywhere, so that whatever is made can be found.
        """
        parts = self._parts
        if row is not None:
            if row.direction != direction:
                raise _other_way(row)
            return await self._open(row.move_id, given, state)

        def insert(txn: Txn, now_us: int) -> int:
            return insert_move(
                txn,
                did=state.did,
                direction=direction,
                step=Step.OPEN,
                status=Status.WAITING,
                state=encode_state(state),
                node=parts.node,
                lease_until=now_us + self._lease_us,
                now_us=now_us,
            )

        try:
            move_id = await parts.engine.transact("move.begin", insert, parts.clock.now_us())
        except Conflict as error:
            raise busy_problem() from error
        return await self._open(move_id, given, state)

    async def _go_on(
        self, row: MoveRow, given: Given, *, expected: Direction | None = None
    ) -> dict[str, Json]:
        if expected is not None and row.direction != expected:
            raise _other_way(row)
        if row.step == Step.OPEN:
            return await self._open(row.move_id, given, decode_state(row))
        if row.status == Status.RUNNING and not _is_anything(given):
            await self._attend(row)
            return await self._view(row.move_id)
        await self._stop_task(row.move_id)
        async with self._held(row.move_id) as work:
            try:
                await self._take(work, given)
            except MoveProblem as problem:
                if problem.code is not Code.SIGN_IN_NEEDED:
                    raise
                work.state.note_problem(problem)
                work.status = Status.WAITING
            await work.save()
        if work.status is Status.RUNNING:
            await self._spawn(row.move_id)
        return await self._view(row.move_id)

    async def _take(self, work: Work, given: Given) -> None:
        """Use what was given, and let the move go on. Raises: MoveProblem."""
        side = migration_in if work.direction is Direction.IN else migration_out

        async def take(work: Work) -> None:
            await side.log_in(work, given)

        await attempt(work, take)
        state = work.state
        state.accepts_missing = state.accepts_missing or given.accepts_missing
        if given.operation is not None:
            state.operation = _check_operation(given.operation)
        if given.plc_token:
            work.secrets.plc_token = given.plc_token.strip()
        if given.requests_token:
            if work.direction is not Direction.IN or work.step is not Step.APPROVE:
                raise MoveProblem(
                    Code.BUSY,
                    "The move does not wait for a code now",
                    "Ask for one when everything is copied: codes live for 15 minutes",
                )
            await attempt(work, migration_in.request_token)
            return
        state.note_progress()
        work.forget_sign_in()
        work.status = Status.RUNNING

    async def _open(self, move_id: int, given: Given, state: MoveState) -> dict[str, Json]:
        """Do the first step, which needs what is not stored, while its caller waits."""
        async with self._held(move_id) as work:
            await work.change_state(state)
            is_open = await self._open_held(work, given)
        if is_open:
            await self._spawn(move_id)
        return await self._view(move_id)

    async def _open_held(self, work: Work, given: Given) -> bool:
        """Whether the account is open; else the move waits for a sign-in. Raises: MoveProblem."""
        side = migration_in if work.direction is Direction.IN else migration_out

        async def act(work: Work) -> None:
            await side.open_account(work, given)

        try:
            await attempt(work, act)
        except MoveProblem as problem:
            await _wait(work, problem)
            if problem.code is Code.SIGN_IN_NEEDED:
                return False
            raise
        work.state.note_progress()
        work.forget_sign_in()
        work.step, work.status = Step.REPO, Status.RUNNING
        await work.save()
        return True

    async def _last_row(self, account: str) -> MoveRow:
        did = await self._did(account)
        row = await self._parts.engine.read("move.get", get_last_move, did)
        if row is None:
            raise RequestError("NotFound", f"There is no move of {account}")
        return row

    async def _attend(self, row: MoveRow) -> bool:
        """Work on a move that shall go on now, if nobody does; return whether that was begun."""
        parts, now_us = self._parts, self._parts.clock.now_us()
        is_elsewhere = row.is_leased(now_us) and not parts.is_alone
        if (
            row.status != Status.RUNNING
            or is_elsewhere
            or Did(row.did) in self._busy
            or is_put_off(decode_state(row), now_us)
        ):
            return False
        return await self._spawn(row.move_id)

    async def _spawn(self, move_id: int) -> bool:
        """Work on a move in the background, if nobody does and there is room."""
        if move_id in self._tasks or len(self._tasks) >= max(self._parts.settings.parallel, 1):
            return False
        task = asyncio.create_task(self._work(move_id), name=f"move {move_id}")
        self._tasks[move_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(move_id, None))
        return True

    async def _work(self, move_id: int) -> None:
        try:
            async with self._held(move_id) as work:
                await drive(work)
        except (LeaseLost, MoveProblem):
            return  # Another node works on it, or will say what is wrong.
        except StoreError as error:
            _log.warning("move.put_off", move_id=move_id, reason=str(error))
        except Exception as error:
            # Taken up again by `resume`; one move must not stop the others.
            _log.error("move.failed", exc=error, move_id=move_id)

    async def _stop_task(self, move_id: int) -> None:
        task = self._tasks.get(move_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _held(self, move_id: int) -> Hold:
        return Hold(self._parts, move_id, self._busy, self._lease_s)

    @asynccontextmanager
    async def _held_soon(self, move_id: int) -> AsyncIterator[Work]:
        """Hold a move when whoever works on it lets go: what a browser brings is soon too old."""
        async with AsyncExitStack() as stack:
            for looks in range(PATIENCE, -1, -1):
                try:
                    work = await stack.enter_async_context(self._held(move_id))
                    break
                except MoveProblem:
                    if looks == 0:
                        raise
                    await self._parts.sleep(PATIENCE_S)
            yield work

    @property
    def _lease_us(self) -> int:
        return round(self._lease_s * US_PER_S)

    async def _open_row(self, did: Did) -> MoveRow | None:
        return await self._parts.engine.read("move.open", get_open_move, did)

    async def _need_open(self, account: str) -> MoveRow:
        row = await self._open_row(await self._did(account))
        if row is None:
            raise RequestError("NotFound", f"There is no open move of {account}")
        return row

    async def _did(self, account: str) -> Did:
        name = account.strip().removeprefix("@")
        if name.startswith("did:"):
            return Did(name)
        known = await self._parts.accounts.lookup(name)
        if known is not None:
            return known.did
        try:
            return (await migration_plan.find(self._parts, name)).did
        except MoveProblem as problem:
            raise problem.as_refusal() from problem

    async def _view(self, move_id: int) -> dict[str, Json]:
        row = await self._parts.engine.read("move.get", get_move, move_id)
        if row is None:
            raise RequestError("NotFound", "The move is gone")
        return view_move(row, decode_state(row))


async def _wait(work: Work, problem: MoveProblem) -> None:
    """Note what is wrong, or missing, and have the move wait for somebody."""
    work.state.note_problem(problem)
    work.status = Status.WAITING
    await work.save()


def _other_way(row: MoveRow) -> MoveProblem:
    return MoveProblem(
        Code.BUSY, f"A move {row.direction} of this account is open", "Finish or undo it first"
    )


def _is_anything(given: Given) -> bool:
    return given != Given()


def _check_operation(content: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return parse_operation(dict(content)).to_json()
    except PlcError as error:
        raise MoveProblem(
            Code.OPERATION_REFUSED,
            f"That is no signed operation: {error}",
            "Give the JSON that the signing tool printed",
        ) from error
