"""The moment of a move to this host: the last looks at the source, the activation, and a look back.

The account may be in use at its old host until it is active here, and what is written there is
caught up with. What that host takes in after the beginning of the *last look* and before the
account is active here is in neither repo at first: this stretch is the pause of a move (`paused_ms`
of its state). It is kept short by looking again until a look is short or finds nothing new; a look
costs what is new (`import_difference`).

And it is not lost: when the account is active here and deactivated there, that host has its last
word, and what it took in meanwhile is carried over (`migration_late`).

Spec: (ACC-40, ACC-41, ACC-43, ACC-50, ACC-54)
"""

import asyncio
from typing import Final

from pds.errors import RemoteError, RequestError
from pds.services import migration_in
from pds.services.migration_blobs import copy_in
from pds.services.migration_late import look_back
from pds.services.migration_problems import Code, MoveProblem
from pds.services.migration_work import Work

MAX_LAST_LOOKS: Final = 8
"""Looks between the change of the identity and the activation, which must not wait for long."""
LAST_LOOKS_S: Final = 120.0
"""All of these looks: whatever another host does, nobody can use the account meanwhile."""
SHORT_LOOK_US: Final = 500_000
"""Another look would hardly be shorter: each asks the other host twice and the directory once."""


async def activate(work: Work) -> None:
    """Catch up once more and open the account here (ACC-40, ACC-41)."""
    state = work.state
    account = await work.account()
    if account.deactivated_at is not None:
        await _look_last(work)
        _, state.held_rev = await work.parts.exports.head(work.did, principal=work.owner)
        await work.save()  # What is newer than that will be the owner's, though this ends now.
    try:
        await work.parts.lifecycle.activate(work.aid)
    except RequestError as error:
        raise MoveProblem(
            Code.ACTIVATION_REFUSED,
            f"The account cannot be activated: {error.message}",
            "Look at the DID document, then go on",
            is_passing=error.name == "InvalidRequest",
        ) from error
    if state.paused_ms is None and state.looked_at is not None:
        state.paused_ms = max(work.parts.clock.now_us() - state.looked_at, 0) // 1000
    await work.save()
    await _copy_last_blobs(work)


async def _look_last(work: Work) -> None:
    """Take over what was written until now, and until then, and so on.

    The identity names this host, so this must not keep the account from becoming active: a look
    that fails is the last one.
    """
    try:
        async with asyncio.timeout(LAST_LOOKS_S):
            await _look_until_short(work)
    except TimeoutError:
        work.state.warn(f"The last look at {work.host.name} took too long")
    except (RemoteError, MoveProblem) as error:
        work.state.warn(f"The last look at {work.host.name} failed: {error}")


async def _look_until_short(work: Work) -> None:
    clock = work.parts.clock
    for _ in range(MAX_LAST_LOOKS):
        before, began = work.state.copied_rev, clock.now_us()
        await migration_in.copy_repo(work)
        if work.state.copied_rev == before or clock.now_us() - began <= SHORT_LOOK_US:
            return
        await copy_in(work)


async def _copy_last_blobs(work: Work) -> None:
    """Fetch the blobs of what was taken over last; nobody can write to the old host for them."""
    try:
        await copy_in(work)
    except (RemoteError, MoveProblem) as error:
        work.state.warn(f"Blobs of what was written last may be missing: {error}")


async def leave(work: Work) -> None:
    """Deactivate the account at the old host, and carry over what that had taken in until then.

    A session by OAuth may end with the deactivation (it does at the reference, August 2026), and
    nobody could look any more: so with one the look back is made before, too.
    """
    if work.secrets.session is not None:
        await look_back(work)
    await migration_in.leave(work)
    await work.save()
    if work.secrets.session is None or await migration_in.has_live_session(work):
        await look_back(work)
