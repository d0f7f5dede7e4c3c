"""Drives a move from step to step until it is done, or somebody has to do something.

`drive` works on a move that this node holds. What passes by itself is tried again with growing
pauses, each longer than the other host asks for; after some tries the move stops with the problem
and what to do next, and whoever looks at it can have it go on.
"""

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Final

from pds.errors import BadAnswer, RemoteError, RequestError, StoreError, Unreachable
from pds.log import get_logger
from pds.services import migration_in, migration_out, migration_sign_in, migration_switch
from pds.services.migration_host import retry_after_s
from pds.services.migration_problems import Code, MoveProblem
from pds.services.migration_state import STEPS, US_PER_S, Direction, MoveState, Status, Step
from pds.services.migration_work import Work

MAX_TRIES: Final = 8
"""With the pauses below about ten minutes."""
FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 300.0

_log: Final = get_logger(__name__)

StepFunction = Callable[[Work], Awaitable[None]]

_IN: Final[Mapping[Step, StepFunction]] = MappingProxyType(
    {
        Step.REPO: migration_in.copy_repo,
        Step.BLOBS: migration_in.copy_blobs,
        Step.PREFERENCES: migration_in.copy_preferences,
        Step.APPROVE: migration_in.approve,
        Step.CATCH_UP: migration_in.catch_up,
        Step.IDENTITY: migration_in.change_identity,
        Step.ACTIVATE: migration_switch.activate,
        Step.LEAVE: migration_switch.leave,
        Step.WATCH: migration_in.watch,
    }
)
_OUT: Final[Mapping[Step, StepFunction]] = MappingProxyType(
    {
        Step.REPO: migration_out.copy_repo,
        Step.BLOBS: migration_out.copy_blobs,
        Step.PREFERENCES: migration_out.copy_preferences,
        Step.APPROVE: migration_out.approve,
        Step.CATCH_UP: migration_out.catch_up,
        Step.IDENTITY: migration_out.change_identity,
        Step.ACTIVATE: migration_out.activate,
        Step.LEAVE: migration_out.leave,
        Step.WATCH: migration_out.watch,
    }
)


async def drive(work: Work) -> None:
    """Take steps until the move is over, stops, or is paced: others may use its place meanwhile.

    Raises: LeaseLost, StoreError.
    """
    while work.status is Status.RUNNING:
        if is_put_off(work.state, work.parts.clock.now_us()):
            return
        await _wait_until_due(work)
        try:
            await _take_step(work)
        except MoveProblem as problem:
            await _stop(work, problem)


def is_put_off(state: MoveState, now_us: int) -> bool:
    """Whether a move waits for its turn among many, which may be long."""
    is_paced = state.problem is not None and state.problem["code"] == Code.PACED
    return is_paced and state.retry_at is not None and state.retry_at > now_us


async def _take_step(work: Work) -> None:
    step = work.step
    if step is Step.OPEN:
        raise MoveProblem(
            Code.LOGIN_NEEDED,
            "The move was cut off before the account was made",
            "Start the same move again, in the same way",
        )
    steps = _IN if work.direction is Direction.IN else _OUT
    await attempt(work, steps[step])
    work.state.note_progress()
    await _go_to_next(work)
    _log.info("move.step_done", did=work.did, direction=work.direction, step=step)


async def attempt(work: Work, act: StepFunction) -> None:
    """Do something for a move; whatever goes wrong comes out as a MoveProblem.

    Raises: MoveProblem, LeaseLost, StoreError.
    """
    try:
        await act(work)
    except (MoveProblem, StoreError):
        raise
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    except RemoteError as error:
        raise from_remote(error, work.host.name) from error
    except RequestError as error:
        raise MoveProblem(
            Code.OUR_FAULT,
            f"This host refused a part of the move: {error.message}",
            "Look at the account here, then go on",
            is_passing=error.status >= 500,
        ) from error


def from_remote(error: RemoteError, host: str) -> MoveProblem:
    """Return what somebody can do about another host's fault."""
    reason = str(error)
    if isinstance(error, BadAnswer):
        return MoveProblem(
            Code.OTHER_HOST_FAULTY,
            f"Another host answered with something that breaks the protocol: {reason}",
            f"Go on later, or tell the operator of {host}",
            is_passing=True,
        )
    if not isinstance(error, Unreachable):
        return MoveProblem(
            Code.OTHER_HOST_REFUSED,
            f"Another host refused: {reason}",
            f"Go on later, or tell the operator of {host}",
        )
    return MoveProblem(
        Code.OTHER_HOST_UNREACHABLE,
        f"Another host does not answer: {reason}",
        f"Go on when {host} is back; nothing is lost",
        is_passing=True,
        after_s=retry_after_s(error),
    )


async def _stop(work: Work, problem: MoveProblem) -> None:
    """Note a problem: try again later, wait for somebody, or give up for now."""
    state = work.state
    state.note_problem(problem)
    if problem.code is Code.PACED:
        _put_off(work, problem.after_s)
    elif problem.is_wait:
        work.status = Status.WAITING
    elif problem.is_passing and state.attempts < MAX_TRIES:
        pause_s = min(FIRST_PAUSE_S * (1 << state.attempts), MAX_PAUSE_S)
        state.attempts += 1
        _put_off(work, max(pause_s, problem.after_s))
    elif work.step in (Step.LEAVE, Step.WATCH):
        # The account lives at its new host; what is left over must not hold the move open.
        state.warn(f"{problem.message}. {problem.next_step}")
        state.note_progress()
        await _go_to_next(work)
        return
    else:
        work.status = Status.FAILED
    _log.info(
        "move.stopped",
        did=work.did,
        step=work.step,
        status=work.status,
        code=problem.code,
        reason=problem.message,
    )
    await work.save()


async def _go_to_next(work: Work) -> None:
    is_over = work.step is STEPS[-1]
    if is_over:
        await migration_sign_in.end(work)
        work.status = Status.DONE
    else:
        work.step = STEPS[STEPS.index(work.step) + 1]
    await work.save(is_over=is_over)


def _put_off(work: Work, pause_s: float) -> None:
    work.state.retry_at = work.parts.clock.now_us() + round(pause_s * US_PER_S)


async def _wait_until_due(work: Work) -> None:
    retry_at = work.state.retry_at
    if retry_at is None:
        return
    pause_us = retry_at - work.parts.clock.now_us()
    if pause_us > 0:
        await work.parts.sleep(pause_us / US_PER_S)
