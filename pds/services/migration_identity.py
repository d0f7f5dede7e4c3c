"""The change of an identity that a move makes: which keys stay, which go, and the operation.

What the owner put into the identity stays: rotation keys that belong to neither host, in their
order; services and verification methods other than the host's own; further aliases. The host that
is left goes out of the rotation keys, unless it shall stay, and the new one takes its place.

An operation that the other host signed for us is compared with what was asked for before it is
submitted: the fields, the predecessor, everything.

Spec: (ID-68, ACC-59, ACC-63)
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pds.protocol.plc import (
    MAX_ROTATION_KEYS,
    PDS_SERVICE_ID,
    PDS_SERVICE_TYPE,
    SIGNING_KEY_ID,
    PlcError,
    PlcOperation,
    PlcService,
    PlcState,
    check_limits,
    make_update,
    parse_operation,
)
from pds.services.migration_problems import Code, MoveProblem


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """What becomes of the rotation keys; `keys` is the new list."""

    keys: tuple[str, ...]
    kept: tuple[str, ...]
    added: tuple[str, ...]
    dropped: tuple[str, ...]

    def to_json(self) -> dict[str, list[str]]:
        """Return it for people."""
        return {
            "kept": list(self.kept),
            "added": list(self.added),
            "dropped": list(self.dropped),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the identity shall say of the host to come."""

    rotation_keys: tuple[str, ...]
    handle: str | None
    signing_key: str
    endpoint: str


def plan_keys(
    current: Sequence[str], *, leaving: Collection[str], coming: Sequence[str]
) -> KeyPlan:
    """Put the keys of the new host where those of the old one were; all others stay (ACC-63)."""
    gone = [key for key in current if key in leaving and key not in coming]
    new = [key for key in coming if key not in current]
    keys: list[str] = []
    is_placed = False
    for key in current:
        if key in gone:
            if not is_placed:
                keys += new
                is_placed = True
            continue
        keys.append(key)
    if not is_placed:
        keys += new
    if len(keys) > MAX_ROTATION_KEYS:
        raise MoveProblem(
            Code.OPERATION_REFUSED,
            f"The identity would have {len(keys)} rotation keys, and {MAX_ROTATION_KEYS} is the"
            " most",
            "Remove a rotation key from the identity, then go on",
        )
    kept = tuple(key for key in current if key not in gone)
    return KeyPlan(tuple(keys), kept, tuple(new), tuple(gone))


def make_wanted_update(last: PlcOperation, wanted: Wanted, keys: Sequence[str]) -> dict[str, Any]:
    """Return the unsigned operation that follows `last`."""
    old = last.state
    if old is None:
        raise MoveProblem(
            Code.OPERATION_REFUSED, "The identity was ended by a tombstone", "It cannot be moved"
        )
    return make_update(
        last,
        rotation_keys=keys,
        also_known_as=_aliases(old.also_known_as, wanted.handle),
        verification_methods={**old.verification_methods, SIGNING_KEY_ID: wanted.signing_key},
        services={
            **old.services,
            PDS_SERVICE_ID: PlcService(PDS_SERVICE_TYPE, wanted.endpoint),
        },
    )


def _aliases(old: Sequence[str], handle: str | None) -> list[str]:
    """The new handle first; the old one goes, other aliases stay (ACC-59)."""
    if handle is None:
        return list(old)
    first = next((alias for alias in old if alias.startswith("at://")), None)
    rest = [alias for alias in old if alias not in (first, f"at://{handle}")]
    return [f"at://{handle}", *rest]


def to_request(fields: Mapping[str, Any], token: str) -> dict[str, Any]:
    """Return the input of `signPlcOperation` at the host that signs."""
    return {
        "token": token,
        "rotationKeys": fields["rotationKeys"],
        "alsoKnownAs": fields["alsoKnownAs"],
        "verificationMethods": fields["verificationMethods"],
        "services": fields["services"],
    }


def check_signed(content: object, fields: Mapping[str, Any], host: str) -> PlcOperation:
    """Return the operation that a host signed, if it is the one that was asked for.

    Raises: MoveProblem.
    """
    try:
        operation = parse_operation(content)
        check_limits(operation)
    except PlcError as error:
        raise MoveProblem(
            Code.OTHER_HOST_FAULTY,
            f"{host} signed something that is no valid operation: {error}",
            "Sign the operation with a rotation key of yours",
        ) from error
    signed = {name: value for name, value in operation.to_json().items() if name != "sig"}
    if {**signed, "prev": None} != {**fields, "prev": None}:
        raise MoveProblem(
            Code.OTHER_HOST_FAULTY,
            f"{host} signed another operation than it was asked to; it was not submitted",
            "Sign the operation with a rotation key of yours",
        )
    if signed["prev"] != fields["prev"]:
        raise MoveProblem(
            Code.OPERATION_REFUSED,
            "The identity was changed by somebody else meanwhile",
            "Ask for a new code and go on, if the change was yours",
        )
    return operation


def read_endpoint(state: PlcState | None) -> str | None:
    """The host that an identity names."""
    service = None if state is None else state.services.get(PDS_SERVICE_ID)
    return None if service is None else service.endpoint.rstrip("/")
