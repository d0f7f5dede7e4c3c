"""Where a rotation key can still speak, and why not (ID-55, ID-57)."""

import pytest

from pds.protocol.plc import PlcError, make_tombstone, make_update, sign_operation
from pds.protocol.plc_log import RECOVERY_WINDOW_US, validate_new_operation
from pds.protocol.plc_recovery import check_can_undo, find_fork, list_signed
from tests.protocol.test_plc_log import DID, KEYS, SECOND, STRANGER, History

TOP, MIDDLE, LOW = (key.public_key.did_key for key in KEYS)


def reason(history: History, key: str, *, wait_us: int = SECOND) -> str:
    with pytest.raises(PlcError) as caught:
        find_fork(history.log, key, history.now_us + wait_us)
    return str(caught.value)


def test_without_a_dispute_a_key_goes_on_at_the_end() -> None:
    history = History()
    history.add(KEYS[2], "bob")
    for key in (TOP, MIDDLE, LOW):
        fork = find_fork(history.log, key, history.now_us)
        assert (fork.last, fork.undone) == (history.last, ())


def test_a_higher_key_goes_on_before_what_a_lower_one_has_done() -> None:
    history = History()
    good = history.add(KEYS[1], "bob")
    history.submit(sign_operation(make_update(good, rotation_keys=[LOW]), KEYS[2]))
    history.add(KEYS[2], "mallory")
    fork = find_fork(history.log, TOP, history.now_us + SECOND)
    assert fork.last is good
    assert fork.undone[0].operation.prev == good.cid
    answer = sign_operation(make_update(fork.last, also_known_as=["at://bob.test"]), KEYS[0])
    log = validate_new_operation(DID, history.log, answer, history.now_us + SECOND)
    assert log.last is answer
    assert log.state is not None
    assert log.state.rotation_keys == (TOP, MIDDLE, LOW)


def test_a_tombstone_can_be_taken_back() -> None:
    history = History()
    good = history.last
    history.submit(sign_operation(make_tombstone(good), KEYS[2]))
    assert find_fork(history.log, TOP, history.now_us).last is good
    assert "same key" in reason(history, LOW)


def test_a_key_without_a_say_is_told_why() -> None:
    history = History()
    good = history.last
    history.submit(sign_operation(make_update(good, rotation_keys=[MIDDLE]), KEYS[1]))
    assert "never one of" in reason(history, STRANGER.public_key.did_key)
    assert "a key above this one" in reason(history, LOW)
    late = RECOVERY_WINDOW_US + SECOND
    assert find_fork(history.log, TOP, history.now_us + RECOVERY_WINDOW_US).last is good
    assert "72 hours" in reason(history, TOP, wait_us=late)


def test_what_the_directory_says_is_what_check_can_undo_says() -> None:
    history = History()
    for signer, name in ((KEYS[2], "a"), (KEYS[1], "b"), (KEYS[0], "c"), (KEYS[2], "d")):
        history.add(signer, name)
    active = history.log.active
    for at in range(1, len(active)):
        for signer in (*KEYS, STRANGER):
            for wait_us in (SECOND, RECOVERY_WINDOW_US - SECOND, RECOVERY_WINDOW_US + SECOND):
                now_us = history.now_us + wait_us
                before = active[at - 1].operation
                answer = sign_operation(make_update(before, also_known_as=["at://x.test"]), signer)
                try:
                    check_can_undo(active, at, signer.public_key.did_key, now_us)
                except PlcError:
                    with pytest.raises(PlcError):
                        validate_new_operation(DID, history.log, answer, now_us)
                else:
                    log = validate_new_operation(DID, history.log, answer, now_us)
                    assert log.last is answer


def test_every_operation_is_named_with_its_signer() -> None:
    history = History()
    good = history.add(KEYS[1], "bob")
    history.add(KEYS[2], "mallory")
    history.add(KEYS[0], "bob", after=good)
    found = list_signed(history.log)
    assert [signed.key for signed in found] == [MIDDLE, MIDDLE, LOW, TOP]
    assert [signed.rank for signed in found] == [1, 1, 2, 0]
    assert [signed.entry.nullified for signed in found] == [False, False, True, False]
    assert found[2].deadline_us == found[2].entry.created_at_us + RECOVERY_WINDOW_US
