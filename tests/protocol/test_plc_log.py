"""did:plc logs: chains, forks, recovery windows, rate limits (ID-55..ID-59, ID-61)."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.protocol.keys import Signer, generate_secret, make_signer
from pds.protocol.plc import (
    PlcError,
    PlcOperation,
    did_for_genesis,
    make_tombstone,
    make_update,
    sign_genesis,
    sign_operation,
)
from pds.protocol.plc_log import (
    HOUR_US,
    RECOVERY_WINDOW_US,
    PlcLog,
    PlcRateLimited,
    PlcRateLimits,
    parse_entries,
    validate_new_operation,
    verify_audit_log,
    verify_operation_log,
)
from pds.protocol.syntax import Did, parse_handle

KEYS: list[Signer] = [
    make_signer("k256", generate_secret("k256", bytes([at]) * 32)) for at in range(3)
]
STRANGER = make_signer("p256", generate_secret("p256", b"s" * 32))
START = 1_790_000_000_000_000
SECOND = 1_000_000


def first() -> PlcOperation:
    return sign_genesis(
        KEYS[1],
        rotation_keys=[key.public_key.did_key for key in KEYS],
        signing_key=STRANGER.public_key.did_key,
        handle=parse_handle("alice.example.com"),
        pds_endpoint="https://pds.example.com",
    )


DID = did_for_genesis(first())


class History:
    """A log that grows one second at a time, unless told otherwise."""

    def __init__(self) -> None:
        self.log = validate_new_operation(DID, PlcLog(DID), first(), START)
        self.now_us = START

    def add(
        self, signer: Signer, name: str, *, after: PlcOperation | None = None, wait_us: int = SECOND
    ) -> PlcOperation:
        fields = make_update(after or self.last, also_known_as=[f"at://{name}.example.com"])
        return self.submit(sign_operation(fields, signer), wait_us)

    def submit(self, operation: PlcOperation, wait_us: int = SECOND) -> PlcOperation:
        log = validate_new_operation(DID, self.log, operation, self.now_us + wait_us)
        self.now_us += wait_us
        self.log = log
        return operation

    @property
    def last(self) -> PlcOperation:
        assert self.log.last is not None
        return self.log.last

    def to_json(self) -> list[Any]:
        return [entry.to_json(DID) for entry in self.log.entries]

    def aliases(self) -> list[str]:
        return [
            entry.operation.state.also_known_as[0].removeprefix("at://").partition(".")[0]
            for entry in self.log.active
            if entry.operation.state
        ]


def test_a_chain_of_updates_is_accepted_and_its_audit_log_verifies() -> None:
    history = History()
    for at, key in enumerate((0, 2, 1)):
        history.add(KEYS[key], f"name{at}")
    verified = verify_audit_log(DID, history.to_json())
    assert verified == history.log
    assert parse_entries(DID, history.to_json()) == history.log
    assert verified.state is not None
    assert verified.state.also_known_as == ("at://name2.example.com",)
    plain = [entry.operation.to_json() for entry in history.log.active]
    assert verify_operation_log(DID, plain) == verified.state


def test_genesis_must_make_the_did_and_be_signed_by_its_own_key() -> None:
    """ID-55."""
    fields = first().to_json()
    other = Did("did:plc:" + "a" * 24)
    with pytest.raises(PlcError):
        validate_new_operation(other, PlcLog(other), first(), START)
    forged = sign_operation(fields, STRANGER)
    with pytest.raises(PlcError):
        validate_new_operation(did_for_genesis(forged), PlcLog(did_for_genesis(forged)), forged, 1)
    with pytest.raises(PlcError):
        validate_new_operation(other, PlcLog(DID), first(), START)
    update = sign_operation(make_update(first()), KEYS[0])
    with pytest.raises(PlcError):
        validate_new_operation(DID, PlcLog(DID), update, START)


def test_an_update_needs_a_key_of_the_operation_before_it() -> None:
    """ID-56."""
    history = History()
    with pytest.raises(PlcError):
        history.add(STRANGER, "x")
    handover = make_update(first(), rotation_keys=[STRANGER.public_key.did_key])
    history.submit(sign_operation(handover, KEYS[0]))
    with pytest.raises(PlcError):
        history.add(KEYS[0], "x")
    history.add(STRANGER, "x")


def test_an_unknown_or_absent_prev_is_refused() -> None:
    """ID-56."""
    history = History()
    unknown = sign_operation(make_update(first(), also_known_as=["at://b.example.com"]), KEYS[0])
    with pytest.raises(PlcError):
        history.add(KEYS[0], "x", after=unknown)
    with pytest.raises(PlcError):
        history.submit(first())


def test_a_higher_key_recovers_from_a_lower_one_within_72_hours() -> None:
    """ID-57."""
    history = History()
    bad = history.add(KEYS[2], "bad")
    history.add(KEYS[2], "worse")
    history.submit(
        sign_operation(make_update(first(), also_known_as=["at://good.example.com"]), KEYS[1]),
        RECOVERY_WINDOW_US - SECOND,
    )
    assert history.aliases() == ["alice", "good"]
    assert [entry.nullified for entry in history.log.entries] == [False, True, True, False]
    assert verify_audit_log(DID, history.to_json()) == history.log
    with pytest.raises(PlcError):
        history.add(KEYS[0], "late", after=bad)


def test_recovery_after_72_hours_is_refused() -> None:
    """ID-57."""
    history = History()
    history.add(KEYS[2], "bad")
    with pytest.raises(PlcError):
        history.add(KEYS[0], "good", after=first(), wait_us=RECOVERY_WINDOW_US + 1)
    history.add(KEYS[0], "good", after=first(), wait_us=RECOVERY_WINDOW_US)


@pytest.mark.parametrize(("bad", "good"), [(1, 1), (1, 2), (0, 0), (0, 2)])
def test_an_equal_or_lower_key_cannot_fork(bad: int, good: int) -> None:
    """ID-57."""
    history = History()
    history.add(KEYS[bad], "bad")
    with pytest.raises(PlcError):
        history.add(KEYS[good], "good", after=first())


def test_a_recovery_can_itself_be_overruled_by_a_higher_key() -> None:
    history = History()
    history.add(KEYS[2], "bad")
    history.add(KEYS[1], "second", after=first())
    with pytest.raises(PlcError):
        history.add(KEYS[1], "third", after=first())
    history.add(KEYS[0], "top", after=first())
    assert history.aliases() == ["alice", "top"]
    assert verify_audit_log(DID, history.to_json()) == history.log


def test_a_tombstone_ends_the_identity_and_can_be_undone_by_recovery() -> None:
    """ID-56, ID-57."""
    history = History()
    history.submit(sign_operation(make_tombstone(first()), KEYS[2]))
    assert history.log.is_tombstoned
    assert history.log.state is None
    tombstone = history.last
    after = {**make_update(first()), "prev": tombstone.cid}
    with pytest.raises(PlcError):
        history.submit(sign_operation(after, KEYS[0]))
    plain = [entry.operation.to_json() for entry in history.log.active]
    assert verify_operation_log(DID, plain) is None
    history.add(KEYS[1], "back", after=first())
    assert history.log.state is not None
    assert verify_audit_log(DID, history.to_json()) == history.log


def test_times_must_increase() -> None:
    """ID-57."""
    history = History()
    for wait_us in (0, -1):
        with pytest.raises(PlcError):
            history.add(KEYS[0], "x", wait_us=wait_us)


def test_rate_limits_are_parameters_and_recoveries_are_exempt() -> None:
    limits = PlcRateLimits(per_hour=3, per_day=4, per_week=5)
    history = History()

    def submit(operation: PlcOperation, now_us: int) -> None:
        history.log = validate_new_operation(
            DID, history.log, operation, now_us, rate_limits=limits
        )
        history.now_us = now_us

    def update(name: str, after: PlcOperation | None = None) -> PlcOperation:
        fields = make_update(after or history.last, also_known_as=[f"at://{name}.example.com"])
        return sign_operation(fields, KEYS[2] if after is None else KEYS[0])

    submit(update("a"), START + 1 * SECOND)
    submit(update("b"), START + 2 * SECOND)
    with pytest.raises(PlcRateLimited, match="hour"):
        submit(update("c"), START + HOUR_US - 1)
    submit(update("c"), START + HOUR_US)
    with pytest.raises(PlcRateLimited, match="day"):
        submit(update("d"), START + 2 * HOUR_US + SECOND)
    submit(update("e"), START + 24 * HOUR_US)
    with pytest.raises(PlcRateLimited, match="week"):
        submit(update("f"), START + 48 * HOUR_US)
    submit(update("g", after=first()), START + 49 * HOUR_US)
    assert history.aliases() == ["alice", "g"]


def test_limits_bind_new_operations_but_not_old_logs() -> None:
    history = History()
    many = [f"at://n{at}.example.com" for at in range(11)]
    large = sign_operation(make_update(first(), also_known_as=many), KEYS[0])
    with pytest.raises(PlcError):
        history.submit(large)
    entry = {**history.to_json()[0], "operation": large.to_json(), "cid": large.cid}
    entry["createdAt"] = "2030-01-01T00:00:00.000Z"
    assert verify_audit_log(DID, [*history.to_json(), entry]).last == large


def set_field(at: int, name: str, value: Any) -> Callable[[list[Any]], None]:
    def change(entries: list[Any]) -> None:
        entries[at][name] = value

    return change


CHANGES: list[tuple[str, Callable[[list[Any]], None]]] = [
    ("cid", set_field(1, "cid", first().cid)),
    ("did", set_field(1, "did", "did:plc:" + "a" * 24)),
    ("nullified", set_field(1, "nullified", False)),
    ("nullified text", set_field(1, "nullified", "true")),
    ("nullified active", set_field(0, "nullified", True)),
    ("same time", set_field(1, "createdAt", "2026-09-21T13:46:40.000Z")),
    ("time number", set_field(1, "createdAt", 5)),
    ("time text", set_field(1, "createdAt", "yesterday")),
    ("late recovery", set_field(2, "createdAt", "2030-01-01T00:00:00.000Z")),
    ("genesis missing", lambda entries: entries.pop(0)),
    ("swapped", lambda entries: entries.reverse()),
    ("repeated", lambda entries: entries.append(entries[-1])),
    ("cid missing", lambda entries: entries[0].pop("cid")),
    ("not an object", lambda entries: entries.append(4)),
    ("empty", lambda entries: entries.clear()),
    ("signature", lambda entries: entries[2]["operation"].update(sig="A" * 86)),
    ("alias", lambda entries: entries[0]["operation"].update(alsoKnownAs=["at://x.example"])),
]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[name for name, _ in CHANGES])
def test_any_tampering_with_an_audit_log_is_found(
    name: str, change: Callable[[list[Any]], None]
) -> None:
    history = History()
    history.add(KEYS[2], "bad")
    history.add(KEYS[1], "good", after=first())
    entries = history.to_json()
    verify_audit_log(DID, entries)
    change(entries)
    with pytest.raises(PlcError):
        verify_audit_log(DID, entries)


@pytest.mark.parametrize("content", [None, {}, [], [None], "log"])
def test_logs_of_another_shape_are_refused(content: object) -> None:
    for verify in (verify_audit_log, verify_operation_log):
        with pytest.raises(PlcError):
            verify(DID, content)


def test_a_plain_log_with_a_gap_is_refused() -> None:
    history = History()
    history.add(KEYS[0], "a")
    history.add(KEYS[0], "b")
    plain = [entry.operation.to_json() for entry in history.log.active]
    with pytest.raises(PlcError):
        verify_operation_log(DID, [plain[0], plain[2]])
    with pytest.raises(PlcError):
        verify_operation_log(DID, plain[1:])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(1, 40)),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_a_directory_admits_verifies_from_its_audit_log(
    moves: list[tuple[int, int, int]],
) -> None:
    history = History()
    for at, (key, back, hours) in enumerate(moves):
        active = history.log.active
        target = active[max(0, len(active) - 1 - back)].operation
        try:
            history.add(KEYS[key], f"n{at}", after=target, wait_us=hours * HOUR_US)
        except PlcError:
            continue
    assert verify_audit_log(DID, history.to_json()) == history.log
    chain = [entry.operation for entry in history.log.active]
    assert [operation.prev for operation in chain] == [None, *[op.cid for op in chain[:-1]]]
