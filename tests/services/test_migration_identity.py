"""What a move makes of an identity: the owner's part stays, the hosts' parts change places.

Spec: (ID-68, ACC-59, ACC-63)
"""

from typing import Any

import pytest

from pds.protocol.keys import make_signer
from pds.protocol.plc import PlcOperation, make_update, sign_genesis, sign_operation
from pds.protocol.syntax import Handle
from pds.services.migration_identity import (
    Wanted,
    check_signed,
    make_wanted_update,
    plan_keys,
    to_request,
)
from pds.services.migration_problems import Code, MoveProblem

OLD, NEW, MINE = (make_signer("k256", bytes([number]) * 32) for number in (1, 2, 3))
OLD_KEY, NEW_KEY, MY_KEY = (signer.public_key.did_key for signer in (OLD, NEW, MINE))


@pytest.mark.parametrize(
    ("current", "leaving", "coming", "keys"),
    [
        (["old"], ["old"], ["new"], ["new"]),
        (["me", "old", "friend"], ["old"], ["new"], ["me", "new", "friend"]),
        (["old", "me"], ["old"], ["new"], ["new", "me"]),
        (["me", "old"], [], ["new"], ["me", "old", "new"]),
        (["me", "new", "old"], ["old"], ["new"], ["me", "new"]),
        (["me", "old"], ["old", "new"], ["new"], ["me", "new"]),
        (["old1", "me", "old2"], ["old1", "old2"], ["new1", "new2"], ["new1", "new2", "me"]),
        (["me"], ["old"], [], ["me"]),
    ],
)
def test_new_keys_take_the_place_of_those_that_leave(
    current: list[str], leaving: list[str], coming: list[str], keys: list[str]
) -> None:
    plan = plan_keys(current, leaving=leaving, coming=coming)
    assert list(plan.keys) == keys
    assert set(plan.kept) | set(plan.added) == set(keys)
    assert set(plan.kept) | set(plan.dropped) == set(current)


def test_more_keys_than_an_identity_may_have_are_refused() -> None:
    with pytest.raises(MoveProblem) as caught:
        plan_keys(list("abcde"), leaving=(), coming=["new"])
    assert caught.value.code is Code.OPERATION_REFUSED


def genesis() -> PlcOperation:
    return sign_genesis(
        OLD,
        rotation_keys=[MY_KEY, OLD_KEY],
        signing_key=OLD_KEY,
        handle=Handle("alice.old.example"),
        pds_endpoint="https://old.example",
    )


def wanted_fields(last: PlcOperation) -> dict[str, Any]:
    wanted = Wanted(
        rotation_keys=(NEW_KEY,),
        handle="alice.new.example",
        signing_key=NEW_KEY,
        endpoint="https://new.example",
    )
    return make_wanted_update(last, wanted, [MY_KEY, NEW_KEY])


def test_what_is_not_the_hosts_stays_in_the_operation() -> None:
    first = genesis()
    assert first.state is not None
    methods = {**first.state.verification_methods, "label": MY_KEY}
    aliases = ["at://alice.old.example", "https://alice.example", "at://other.example"]
    fields = make_update(first, verification_methods=methods, also_known_as=aliases)
    fields = wanted_fields(sign_operation(fields, OLD))
    assert fields["verificationMethods"] == {"atproto": NEW_KEY, "label": MY_KEY}
    assert fields["alsoKnownAs"] == [
        "at://alice.new.example",
        "https://alice.example",
        "at://other.example",
    ]
    assert fields["services"]["atproto_pds"]["endpoint"] == "https://new.example"
    request = to_request(fields, "CODE")
    assert request.keys() == {
        "token",
        "rotationKeys",
        "alsoKnownAs",
        "verificationMethods",
        "services",
    }


def test_only_the_operation_that_was_asked_for_is_taken() -> None:
    last = genesis()
    fields = wanted_fields(last)
    signed = sign_operation(fields, OLD)
    assert check_signed(signed.to_json(), fields, "old").cid == signed.cid
    for wrong in (None, 7, {}, {"type": "plc_operation"}):
        with pytest.raises(MoveProblem) as caught:
            check_signed(wrong, fields, "old")
        assert caught.value.code is Code.OTHER_HOST_FAULTY
    other = sign_operation({**fields, "rotationKeys": [OLD_KEY]}, OLD)
    with pytest.raises(MoveProblem, match="another operation"):
        check_signed(other.to_json(), fields, "old")
    later = sign_operation({**fields, "prev": signed.cid}, OLD)
    with pytest.raises(MoveProblem, match="somebody else") as caught:
        check_signed(later.to_json(), fields, "old")
    assert caught.value.code is Code.OPERATION_REFUSED
