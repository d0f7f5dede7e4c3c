"""What the journal keeps of an account that is being opened: enough to complete it or to undo it.

The signing key in it is sealed under the master key and bound to the DID; the password is there as
its hash only.
"""

import base64
import binascii
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import orjson

from pds.errors import Corrupt
from pds.protocol.keys import Curve, Signer, make_signer
from pds.protocol.plc import PlcError, PlcOperation, parse_operation
from pds.protocol.syntax import Did, Handle
from pds.store.keystore import Keystore

JOURNAL_KIND: Final = "create_account"
"""`journal.kind` of these rows; `journal.subject` is the handle."""


class DraftPhase(StrEnum):
    """What is to become of a row that is found."""

    OPEN = "open"
    """Complete it, if the directory has the DID."""
    UNDO = "undo"
    """Its client was told of a failure: end the DID, if the directory has it."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An account under way."""

    phase: DraftPhase
    did: Did
    handle: Handle
    email: str | None
    password_hash: str
    invite_code: str | None
    operation: PlcOperation
    curve: Curve
    sealed_secret: bytes

    def marked(self, phase: DraftPhase) -> "Draft":
        """Return the same draft in another phase."""
        return replace(self, phase=phase)

    def secret(self, keystore: Keystore) -> bytes:
        """Unseal the signing key; raises Corrupt."""
        return keystore.open(seal_subject(self.did), self.sealed_secret)

    def signer(self, keystore: Keystore) -> Signer:
        """Return the signer of the account-to-be; raises Corrupt."""
        return make_signer(self.curve, self.secret(keystore))


def seal_subject(did: Did) -> str:
    """What the sealed secret is bound to."""
    return f"{JOURNAL_KIND} {did}"


def encode_draft(draft: Draft) -> bytes:
    """Return the journal's form."""
    return orjson.dumps(
        {
            "phase": draft.phase,
            "did": draft.did,
            "handle": draft.handle,
            "email": draft.email,
            "password_hash": draft.password_hash,
            "invite_code": draft.invite_code,
            "operation": draft.operation.to_json(),
            "curve": draft.curve,
            "sealed_secret": base64.b64encode(draft.sealed_secret).decode(),
        }
    )


def decode_draft(state: bytes) -> Draft:
    """Read the journal's form; raises Corrupt."""
    try:
        fields: dict[str, Any] = orjson.loads(state)
        return Draft(
            phase=DraftPhase(fields["phase"]),
            did=Did(fields["did"]),
            handle=Handle(fields["handle"]),
            email=fields["email"],
            password_hash=fields["password_hash"],
            invite_code=fields["invite_code"],
            operation=parse_operation(fields["operation"]),
            curve=fields["curve"],
            sealed_secret=base64.b64decode(fields["sealed_secret"], validate=True),
        )
    except (KeyError, TypeError, ValueError, PlcError, binascii.Error) as error:
        raise Corrupt("a journal row of an account cannot be read") from error
