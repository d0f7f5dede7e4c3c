"""What is kept of a move between two of its steps, and how it is shown.

`MoveState` is stored as JSON and holds nothing secret; `MoveSecrets` (tokens of the other host, and
the code by which it signs the operation) is sealed under the keystore and bound to the move. A
password is in neither: it is used for one login and dropped. While somebody signs in at the other
host by OAuth, the password for this host lies in `sign_in`, which only what the browser brings back
can open.

Steps, in order:

| step | in | out |
|---|---|---|
| `open` | log in there, make the account here, deactivated | make the account there |
| `repo` | their CAR is verified and taken over | our CAR is sent |
| `blobs` | copied in parallel, each hashed | sent in parallel |
| `preferences` | copied | copied |
| `approve` | wait for the code by which they sign | pass at once: our key signs |
| `catch_up` | what was written meanwhile | what was written meanwhile |
| `identity` | operation signed, compared, submitted | operation signed, submitted there |
| `activate` | here | there |
| `leave` | deactivate there | deactivate here |
| `watch` | do relays and AppView see it? | do relays see it? |

Until `identity` nothing but the staged account has changed anywhere; until `activate` the move can
be undone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Final

import orjson

from pds.errors import Corrupt
from pds.protocol.data import Json
from pds.protocol.syntax import Did
from pds.services.migration_problems import MoveProblem
from pds.services.migration_session import Tokens
from pds.services.oauth_client import OAuthSession
from pds.store.keystore import Keystore
from pds.store.moves import MoveRow

MAX_NAMED: Final = 1_000
"""Blobs that are listed by name in the state; of more only the number is kept."""
US_PER_S: Final = 1_000_000


class Direction(StrEnum):
    """Which way an account goes."""

    IN = "in"
    OUT = "out"


class Status(StrEnum):
    """Whether somebody has to do something about a move. `running` is `pds.store.moves.RUNNING`."""

    RUNNING = "running"
    WAITING = "waiting"
    FAILED = "failed"
    DONE = "done"
    UNDONE = "undone"


class Step(StrEnum):
    """The steps of a move, in order."""

    OPEN = "open"
    REPO = "repo"
    BLOBS = "blobs"
    PREFERENCES = "preferences"
    APPROVE = "approve"
    CATCH_UP = "catch_up"
    IDENTITY = "identity"
    ACTIVATE = "activate"
    LEAVE = "leave"
    WATCH = "watch"


STEPS: Final = tuple(Step)


@dataclass(slots=True, kw_only=True)
class MoveState:
    """How far a move is. `*_rev` are revs of the host that the account leaves."""

    did: Did
    other_url: str
    old_handle: str | None = None
    handle: str | None = None
    email: str | None = None
    aid: int | None = None
    other_did: str | None = None
    # What was asked for
    leaves_old: bool = True
    keeps_old_keys: bool = False
    accepts_missing: bool = False
    by_operator: bool = True
    # What was done
    was_here: bool = False
    copied_rev: str | None = None
    source_key: str | None = None
    """By which the old host signs for a did:web, as its document said before the switch."""
    records: int = 0
    repo_bytes: int = 0
    blobs_expected: int = 0
    blobs_copied: int = 0
    blob_bytes: int = 0
    blobs_gone: list[str] = field(default_factory=list)
    preferences: int | None = None
    keys: dict[str, list[str]] = field(default_factory=dict)
    """Rotation keys by what becomes of them: `kept`, `added`, `dropped`."""
    document: dict[str, Any] | None = None
    """What the owner of a did:web has to publish."""
    operation: dict[str, Any] | None = None
    """Signed, and perhaps submitted."""
    token_requested_at: int | None = None
    looked_at: int | None = None
    """When the last look at the source began: what was written there before is here."""
    held_rev: str | None = None
    """Of the repo here, before the activation: what is newer was written here."""
    paused_ms: int | None = None
    """In: from the last look at the source until the account took writes here. Out: from the change
    of the identity to the activation."""
    carried_over: int = 0
    """Writes of that stretch which were taken over after it."""
    has_left: bool = False
    seen_by: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    # What is wrong
    problem: dict[str, Any] | None = None
    sign_in: dict[str, Any] | None = None
    """Where the owner has to sign in: `url`, `host`, and until when (`expiresAt`)."""
    attempts: int = 0
    retry_at: int | None = None

    def warn(self, text: str) -> None:
        """Note something that the owner should know, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def note_problem(self, problem: MoveProblem) -> None:
        """Note why the move does not go on."""
        self.problem = {
            "code": problem.code.value,
            "message": problem.message,
            "nextStep": problem.next_step,
        }

    def note_progress(self) -> None:
        """Nothing is wrong any more."""
        self.problem, self.attempts, self.retry_at = None, 0, None


@dataclass(slots=True, kw_only=True, repr=False)
class MoveSecrets:
    """What opens doors at the other host while the move goes on."""

    access: str | None = None
    refresh: str | None = None
    plc_token: str | None = None
    oauth: dict[str, Any] | None = None
    """An `OAuthSession`."""
    sign_in: str | None = None
    """A sign-in that has begun, locked with a key that nobody here has (`migration_sign_in`)."""

    @property
    def tokens(self) -> Tokens | None:
        """The session at the other host."""
        if self.access is None or self.refresh is None:
            return None
        return Tokens(self.access, self.refresh)

    def keep(self, tokens: Tokens) -> None:
        """Remember a session, instead of any other."""
        self.access, self.refresh = tokens.access, tokens.refresh
        self.oauth = None

    @property
    def session(self) -> OAuthSession | None:
        """The session at the other host, if it was opened by OAuth."""
        return None if self.oauth is None else OAuthSession(**self.oauth)

    def keep_session(self, session: OAuthSession) -> None:
        """Remember a session, instead of any other."""
        self.access, self.refresh = None, None
        self.oauth = asdict(session)


def encode_state(state: MoveState) -> bytes:
    """Return the stored form."""
    return orjson.dumps(asdict(state))


def decode_state(row: MoveRow) -> MoveState:
    """Read the stored form; what an older version did not know is as at the start.

    Raises: Corrupt.
    """
    try:
        given: dict[str, Any] = orjson.loads(row.state)
        known = {entry.name for entry in fields(MoveState)}
        return MoveState(**{name: value for name, value in given.items() if name in known})
    except (TypeError, ValueError) as error:
        raise Corrupt(f"the state of move {row.move_id} cannot be read") from error


def seal_secrets(
    keystore: Keystore, move_id: int, secrets: MoveSecrets, *, nonce: bytes
) -> bytes | None:
    """Return the sealed form; None when there is nothing to seal."""
    values = {name: value for name, value in asdict(secrets).items() if value is not None}
    if not values:
        return None
    return keystore.seal(_subject(move_id), orjson.dumps(values), nonce=nonce)


def open_secrets(keystore: Keystore, row: MoveRow) -> MoveSecrets:
    """Unseal the secrets of a move. Raises: Corrupt."""
    if row.secrets is None:
        return MoveSecrets()
    values = orjson.loads(keystore.open(_subject(row.move_id), row.secrets))
    return MoveSecrets(**values)


def _subject(move_id: int) -> str:
    return f"move {move_id}"


def view_move(row: MoveRow, state: MoveState) -> dict[str, Json]:
    """Return a move as pages and commands show it."""
    at = STEPS.index(Step(row.step))
    view: dict[str, Json] = {
        "id": row.move_id,
        "did": state.did,
        "direction": row.direction,
        "status": row.status,
        "step": row.step,
        "stepNumber": at + 1,
        "stepCount": len(STEPS),
        "otherHost": state.other_url,
        "handle": state.handle,
        "oldHandle": state.old_handle,
        "progress": {
            "records": state.records,
            "repoBytes": state.repo_bytes,
            "blobsExpected": state.blobs_expected,
            "blobsCopied": state.blobs_copied,
            "blobsGone": len(state.blobs_gone),
            "blobBytes": state.blob_bytes,
            "preferences": state.preferences,
            "carriedOver": state.carried_over,
        },
        "canUndo": row.finished_at is None and at <= STEPS.index(Step.ACTIVATE),
        "warnings": list(state.warnings),
    }
    optional: Mapping[str, Json] = {
        "problem": state.problem,
        "rotationKeys": {name: list(keys) for name, keys in state.keys.items()} or None,
        "document": state.document,
        "tokenRequestedAt": state.token_requested_at,
        "pausedMs": state.paused_ms,
        "retryAt": state.retry_at,
        "seenBy": list(state.seen_by) or None,
        "missingBlobs": list(state.blobs_gone) or None,
        "signIn": state.sign_in,
    }
    return view | {name: value for name, value in optional.items() if value is not None}
