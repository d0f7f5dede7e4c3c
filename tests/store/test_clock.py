"""When the clock is believed (promise A9)."""

import pytest

from pds.errors import Unavailable
from pds.store.clock import (
    DAY_US,
    EARLIEST_US,
    Basis,
    CheckedClock,
    ClockInDoubt,
    SystemClock,
    get_accepted_us,
    parse_date_header,
    put_accepted_us,
    read_clocks,
)
from pds.store.sqlite import SqliteEngine
from tests.fakes.clock import NOON_US, FakeMachine, FakeReferences

HOUR_S = 3600
DAY_S = 86_400


def make(machine: FakeMachine, *offsets_s: float | None) -> tuple[CheckedClock, FakeReferences]:
    references = FakeReferences(machine, *offsets_s)
    return CheckedClock(references, read=machine.read), references


async def test_before_the_first_check_the_clock_is_not_believed() -> None:
    clock, _ = make(FakeMachine(), 0)
    with pytest.raises(ClockInDoubt, match="not been checked"):
        clock.now_us()


async def test_a_clock_that_agrees_with_other_hosts_is_believed() -> None:
    clock, _ = make(FakeMachine(), 0.9, -1.2)
    assert await clock.start(last_seq=0)
    assert clock.now_us() == NOON_US
    assert (clock.basis, clock.doubt) == (Basis.REFERENCE, None)


@pytest.mark.parametrize("offset_s", [-DAY_S * 400, -HOUR_S, -31, 31, HOUR_S])
async def test_a_clock_that_disagrees_at_start_stops_writes_until_it_agrees(
    offset_s: float,
) -> None:
    machine = FakeMachine()
    clock, references = make(machine, offset_s)
    assert not await clock.start(last_seq=NOON_US - 1)
    with pytest.raises(Unavailable, match="other hosts' clocks differ"):
        clock.now_us()
    references.offsets_s = [0]
    assert await clock.check()
    assert clock.now_us() == NOON_US


@pytest.mark.parametrize(
    ("offsets_s", "believed"),
    [
        ([0, 0, HOUR_S], True),
        ([0, HOUR_S, HOUR_S], False),
        ([0, HOUR_S], False),
        ([None, None, 0], True),
        ([None, HOUR_S], False),
    ],
)
async def test_most_of_the_hosts_that_answer_must_agree(
    offsets_s: list[float | None], believed: bool
) -> None:
    clock, _ = make(FakeMachine(), *offsets_s)
    assert await clock.start(last_seq=NOON_US) is believed


async def test_a_first_start_without_network_is_believed() -> None:
    clock, _ = make(FakeMachine(), None)
    assert await clock.start(last_seq=0)
    assert clock.basis is Basis.FIRST_START


async def test_a_clock_that_was_never_set_is_not_believed_by_anything() -> None:
    machine = FakeMachine(wall_us=EARLIEST_US - 1)
    clock, _ = make(machine, 0)
    assert not await clock.start(last_seq=0)
    assert not clock.accept()
    assert clock.doubt == "the clock was never set"


@pytest.mark.parametrize(
    ("since_last_s", "believed"),
    [(-HOUR_S, False), (-3, False), (-1, True), (0, True), (DAY_S, True), (DAY_S + 1, False)],
)
async def test_without_network_the_last_event_decides_at_start(
    since_last_s: int, believed: bool
) -> None:
    clock, _ = make(FakeMachine(), None)
    assert await clock.start(last_seq=NOON_US - since_last_s * 1_000_000) is believed
    assert clock.basis is (Basis.LAST_EVENT if believed else None)


async def test_a_host_that_slept_for_a_week_needs_nobody_while_it_runs_on() -> None:
    machine = FakeMachine()
    clock, references = make(machine, 0)
    assert await clock.start(last_seq=0)
    references.offsets_s = [None]
    machine.pass_time(7 * DAY_S)  # suspended: the boot clock went on
    assert clock.now_us() == NOON_US + 7 * DAY_US
    assert await clock.check()
    assert references.asked == 1


async def test_a_host_that_was_off_for_a_week_asks_others() -> None:
    clock, _ = make(FakeMachine(), 0.5)
    assert await clock.start(last_seq=NOON_US - 7 * DAY_US)
    assert clock.basis is Basis.REFERENCE


@pytest.mark.parametrize("jump_s", [-DAY_S, -2.5, 2.5, HOUR_S, 400 * DAY_S])
async def test_after_a_jump_writes_wait_for_confirmation(jump_s: float) -> None:
    machine = FakeMachine()
    clock, references = make(machine, 0)
    assert await clock.start(last_seq=0)
    machine.jump(jump_s)
    with pytest.raises(ClockInDoubt, match="jumped"):
        clock.now_us()
    references.offsets_s = [None]
    assert not await clock.check()  # nobody can be asked: still in doubt
    with pytest.raises(ClockInDoubt, match="jumped"):
        clock.now_us()
    references.offsets_s = [jump_s]  # the new time is the right one
    assert await clock.check()
    assert clock.now_us() == NOON_US + round(jump_s * 1_000_000)


async def test_a_jump_that_is_undone_still_needs_confirmation() -> None:
    machine = FakeMachine()
    clock, references = make(machine, 0)
    assert await clock.start(last_seq=0)
    machine.jump(10)
    with pytest.raises(ClockInDoubt):
        clock.now_us()
    machine.jump(-10)
    with pytest.raises(ClockInDoubt):
        clock.now_us()
    assert await clock.check()
    assert references.asked == 2


async def test_slow_corrections_are_no_jump() -> None:
    machine = FakeMachine()
    clock, references = make(machine, 0)
    assert await clock.start(last_seq=0)
    for _ in range(5_000):  # NTP slews by up to 0.5 per mille
        machine.pass_time(10)
        machine.jump(0.005)
        clock.now_us()
    assert references.asked == 1
    machine.jump(1.9)
    clock.now_us()
    machine.jump(5)  # long uptime has not made it lenient
    with pytest.raises(ClockInDoubt):
        clock.now_us()


async def test_the_operator_may_accept_the_clock() -> None:
    machine = FakeMachine()
    clock, _ = make(machine, HOUR_S)
    assert not await clock.start(last_seq=NOON_US)
    assert clock.accept()
    assert (clock.now_us(), clock.basis) == (NOON_US, Basis.OPERATOR)
    machine.jump(-100)
    with pytest.raises(ClockInDoubt):
        clock.now_us()


@pytest.mark.parametrize(
    ("ago_s", "believed"), [(0, True), (DAY_S, True), (DAY_S + 1, False), (-HOUR_S, False)]
)
async def test_the_operators_word_counts_at_starts_for_a_day(ago_s: int, believed: bool) -> None:
    clock, _ = make(FakeMachine(), HOUR_S)
    accepted_us = NOON_US - ago_s * 1_000_000
    assert await clock.start(last_seq=NOON_US, accepted_us=accepted_us) is believed


async def test_the_operators_word_is_kept_in_the_database(recording_engine: SqliteEngine) -> None:
    assert await recording_engine.read("get", get_accepted_us) is None
    for now_us in (NOON_US, NOON_US + 5):
        await recording_engine.transact("put", put_accepted_us, now_us)
        assert await recording_engine.read("get", get_accepted_us) == now_us


def test_date_headers_are_read() -> None:
    assert parse_date_header("Fri, 15 Jan 2027 08:00:00 GMT") == NOON_US
    assert parse_date_header("Fri, 15 Jan 2027 08:00:00 -0000") == NOON_US
    for bad in ("", "yesterday", "Fri, 99 Jan 2027 08:00:00 GMT"):
        assert parse_date_header(bad) is None


def test_the_machine_has_both_clocks() -> None:
    first, second = read_clocks(), read_clocks()
    assert first.boot_us <= second.boot_us
    assert abs(SystemClock().now_us() - second.wall_us) < 60_000_000
