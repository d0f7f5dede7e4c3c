"""Timestamp identifiers: the encoding, and never going back (DM-60, DM-61, REPO-3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pds.protocol.syntax import InvalidSyntax, Tid
from pds.protocol.tid import MAX_CLOCK_ID, MAX_US, TidClock, decode_tid, encode_tid, next_tid

instants = st.integers(0, MAX_US)
clock_ids = st.integers(0, MAX_CLOCK_ID)


@pytest.mark.parametrize(
    ("us", "clock_id", "tid"),
    [
        (0, 0, "2222222222222"),
        (0, 1, "2222222222223"),
        (1, 0, "2222222222322"),
        (MAX_US, MAX_CLOCK_ID, "bzzzzzzzzzzzz"),
        (1_700_000_000_123_456, 5, "3ke6kg42cm227"),
    ],
)
def test_vectors(us: int, clock_id: int, tid: str) -> None:
    assert encode_tid(us, clock_id) == tid
    assert decode_tid(tid) == (us, clock_id)


@given(instants, clock_ids)
def test_encoding_and_decoding_are_inverse(us: int, clock_id: int) -> None:
    assert decode_tid(encode_tid(us, clock_id)) == (us, clock_id)


@given(st.tuples(instants, clock_ids), st.tuples(instants, clock_ids))
def test_text_order_is_time_order(one: tuple[int, int], two: tuple[int, int]) -> None:
    assert (encode_tid(*one) < encode_tid(*two)) is (one < two)


@pytest.mark.parametrize(("us", "clock_id"), [(-1, 0), (MAX_US + 1, 0), (0, -1), (0, 1024)])
def test_numbers_that_do_not_fit_are_refused(us: int, clock_id: int) -> None:
    with pytest.raises(InvalidSyntax):
        encode_tid(us, clock_id)


@pytest.mark.parametrize("text", ["", "222222222222", "zzzzzzzzzzzzz", "222222222222-"])
def test_text_that_is_no_tid_is_not_decoded(text: str) -> None:
    with pytest.raises(InvalidSyntax):
        decode_tid(text)


@given(instants.filter(lambda us: us < MAX_US), clock_ids, instants, clock_ids)
def test_the_next_tid_is_always_greater(us: int, before: int, now_us: int, after: int) -> None:
    previous = encode_tid(us, before)
    found = next_tid(previous, now_us, after)
    assert found > previous
    assert decode_tid(found) == (max(now_us, us + 1), after)


def test_without_a_previous_tid_the_clock_is_taken() -> None:
    assert next_tid(None, 77, 3) == encode_tid(77, 3)


def test_the_last_possible_tid_has_no_next() -> None:
    with pytest.raises(InvalidSyntax):
        next_tid(encode_tid(MAX_US, 0), 0, 0)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), clock_ids)
def test_a_clock_object_never_repeats_when_time_stands_or_steps_back(
    times: list[int], clock_id: int
) -> None:
    clock = TidClock(clock_id, last_us=20)
    made: list[Tid] = [clock.next(now_us) for now_us in times]
    assert made == sorted(set(made))
    assert made[0] > encode_tid(20, MAX_CLOCK_ID) or clock_id == MAX_CLOCK_ID
    assert {decode_tid(tid)[1] for tid in made} == {clock_id}
