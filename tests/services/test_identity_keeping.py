"""Keys that owners keep, the watch on identities, and taking operations back, on one host."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import RequestError
from pds.protocol.keys import Signer, make_signer
from pds.protocol.plc import PlcOperation, PlcService, make_update, sign_operation
from pds.services.audit import Order
from pds.services.countermands import Countermands
from pds.services.mail import Mail
from pds.services.plc_watch import PlcWatch, PlcWatchSettings
from pds.services.recovery_keys import KeyRole, RecoveryKeys
from pds.store.accounts import Account, update_deactivation
from pds.store.audit import list_audit
from pds.store.erasure import delete_account_rows
from tests.fakes.plc import Mood
from tests.services.creation_host import OPERATOR_KEY, ROTATION
from tests.services.identity_host import IdentityHost, identity_host

ADMIN = Order("cli:tests")
HOUR_S = 3600
USER = make_signer("k256", b"\x31" * 32)
OTHER = make_signer("p256", b"\x32" * 32)
SERVER_KEY = ROTATION.public_key.did_key
USER_KEY = USER.public_key.did_key


class Keepers:
    """The services under test over one host."""

    def __init__(self, host: IdentityHost) -> None:
        self.host = host
        host.plc.directory._now_us = host.clock.now_us
        parts: dict[str, Any] = {
            "accounts": host.cache,
            "plc": host.identity_plc,
            "journal": host.journal,
            "rotation_signer": ROTATION,
        }
        self.keys = RecoveryKeys(operator_key=OPERATOR_KEY, **parts)
        self.countermands = Countermands(engine=host.engine, clock=host.clock, **parts)
        self.watch = PlcWatch(
            engine=host.engine,
            clock=host.clock,
            plc=host.identity_plc,
            mails=host.mails,
            server_key=SERVER_KEY,
            operator_address="operator@pds.test",
            settings=PlcWatchSettings(),
            pause_s=0.0,
        )

    async def look(self) -> dict[str, int]:
        """Let the interval pass, and have the job run."""
        self.host.clock.advance(3 * HOUR_S)
        return await self.watch.sweep()

    def submit(self, account: Account, signer: Signer, **changes: Any) -> PlcOperation:
        """Change an identity at the directory, behind our back."""
        log = self.host.plc.directory.get_log(account.did)
        assert log is not None
        assert log.last is not None
        operation = sign_operation(make_update(log.last, **changes), signer)
        return self.host.plc.directory.submit(account.did, operation.to_json())

    def steal(self, account: Account, signer: Signer) -> PlcOperation:
        elsewhere = PlcService("AtprotoPersonalDataServer", "https://evil.test")
        return self.submit(account, signer, services={"atproto_pds": elsewhere})

    def rotation_keys(self, account: Account) -> list[str]:
        return list(self.host.state(account.did).rotation_keys)

    def alarms(self) -> list[Mail]:
        received = [found.mail for found in self.host.mailbox.received()]
        return [mail for mail in received if mail.purpose == "plc_alarm"]

    async def audit(self) -> list[tuple[str, str]]:
        rows = await self.host.real_engine.read("test.audit", list_audit)
        return [(row.act, row.subject) for row in rows]


@pytest.fixture
async def keepers(tmp_path: Path) -> AsyncIterator[Keepers]:
    async with identity_host(tmp_path) as host:
        yield Keepers(host)


async def refusal(awaitable: Any) -> str:
    with pytest.raises(RequestError) as caught:
        await awaitable
    return caught.value.message


# Keys of owners


async def test_a_key_of_the_owner_comes_first_and_goes_again(keepers: Keepers) -> None:
    """ID-65: whose key is first has the last word; #identity tells of each change (SYNC-34)."""
    alice = await keepers.host.add()
    seen = len(await keepers.host.frames())
    keys = await keepers.keys.add(alice.did, USER_KEY, order=ADMIN)
    assert [key.did_key for key in keys] == keepers.rotation_keys(alice) == [USER_KEY, SERVER_KEY]
    assert [key.role for key in await keepers.keys.list_keys(alice.did)] == [
        KeyRole.OWNER,
        KeyRole.SERVER,
    ]
    await keepers.keys.add(alice.did, OTHER.public_key.did_key, order=ADMIN, replaces=USER_KEY)
    assert keepers.rotation_keys(alice) == [OTHER.public_key.did_key, SERVER_KEY]
    await keepers.keys.remove(alice.did, OTHER.public_key.did_key, order=ADMIN)
    assert keepers.rotation_keys(alice) == [SERVER_KEY]
    events = await keepers.host.events_since(seen)
    assert [kind for kind, _ in events] == ["#identity"] * 3
    assert await keepers.audit() == [("account.submit-operation", alice.did)] * 3
    await keepers.host.assert_agrees(alice.did)


async def test_adding_the_same_key_again_changes_nothing(keepers: Keepers) -> None:
    alice = await keepers.host.add()
    await keepers.keys.add(alice.did, USER_KEY, order=ADMIN)
    count = keepers.host.operations_of(alice.did)
    await keepers.keys.add(alice.did, USER_KEY, order=ADMIN)
    assert keepers.host.operations_of(alice.did) == count


async def test_keys_that_cannot_be_are_refused(keepers: Keepers) -> None:
    """ID-58: a few keys, no nonsense, and never ours out."""
    alice = await keepers.host.add()
    add, remove = keepers.keys.add, keepers.keys.remove
    assert "not a did:key" in await refusal(add(alice.did, "did:key:zzz", order=ADMIN))
    assert "belongs to this server" in await refusal(add(alice.did, SERVER_KEY, order=ADMIN))
    assert "belongs to this server" in await refusal(add(alice.did, OPERATOR_KEY, order=ADMIN))
    assert "of the owner" in await refusal(remove(alice.did, SERVER_KEY, order=ADMIN))
    assert "none of the rotation keys" in await refusal(remove(alice.did, USER_KEY, order=ADMIN))
    wrong = add(alice.did, USER_KEY, order=ADMIN, replaces=OTHER.public_key.did_key)
    assert "none of the rotation keys" in await refusal(wrong)
    wrong = add(alice.did, USER_KEY, order=ADMIN, replaces=SERVER_KEY)
    assert "of the owner" in await refusal(wrong)
    for number in range(4):
        key = make_signer("k256", bytes([0x40 + number]) * 32).public_key.did_key
        await add(alice.did, key, order=ADMIN)
    assert "at most 5" in await refusal(add(alice.did, USER_KEY, order=ADMIN))
    assert await refusal(add("did:plc:nobody", USER_KEY, order=ADMIN)) == "Account not found"


async def test_a_rehearsal_of_a_key_changes_nothing(keepers: Keepers) -> None:
    alice = await keepers.host.add()
    rehearsal = Order("cli:tests", is_rehearsal=True)
    keys = await keepers.keys.add(alice.did, USER_KEY, order=rehearsal)
    assert keys[0].did_key == USER_KEY
    assert keepers.rotation_keys(alice) == [SERVER_KEY]
    assert await keepers.audit() == []


async def test_a_server_without_a_key_of_the_identity_says_so(keepers: Keepers) -> None:
    alice = await keepers.host.add()
    keepers.submit(alice, ROTATION, rotation_keys=[USER_KEY])
    told = await refusal(keepers.keys.add(alice.did, USER_KEY, order=ADMIN))
    assert "none of the rotation keys" in told


# The watch


async def test_what_we_or_the_owner_do_here_raises_no_alarm(keepers: Keepers) -> None:
    alice = await keepers.host.add()
    assert await keepers.look() == {"looked": 1, "foreign": 0, "unknown": 0}
    await keepers.keys.add(alice.did, USER_KEY, order=ADMIN)
    await keepers.host.rotation.rotate(alice.did, order=ADMIN)
    log = keepers.host.plc.directory.get_log(alice.did)
    assert log is not None
    assert log.last is not None
    aliases = [*log.last.state.also_known_as, "at://second.test"]  # type: ignore[union-attr]
    own = sign_operation(make_update(log.last, also_known_as=aliases), USER)
    await keepers.host.operations.submit(alice.aid, own.to_json())
    assert await keepers.look() == {"looked": 1, "foreign": 0, "unknown": 0}
    assert keepers.alarms() == []


async def test_an_operation_of_somebody_else_is_told_once_to_owner_and_operator(
    keepers: Keepers, caplog: pytest.LogCaptureFixture
) -> None:
    """ID-61: audit row, ERROR line, two mails, and a number for the metrics."""
    alice = await keepers.host.add()
    await keepers.keys.add(alice.did, USER_KEY, order=ADMIN)
    await keepers.look()
    before = len(await keepers.audit())
    foreign = keepers.steal(alice, USER)
    assert (await keepers.look())["foreign"] == 1
    assert (await keepers.look())["foreign"] == 0
    mails = keepers.alarms()
    assert [mail.to for mail in mails] == ["alice@mail.test", "operator@pds.test"]
    for mail in mails:
        assert foreign.cid in mail.text
        assert USER_KEY in mail.text
    assert (await keepers.audit())[0] == ("account.foreign-operation", alice.did)
    assert len(await keepers.audit()) == before + 1
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in errors] == ["plc_watch.foreign_operation"]
    assert keepers.watch.open_alarms == 1
    keepers.host.clock.advance(72 * HOUR_S)
    await keepers.look()
    assert keepers.watch.open_alarms == 0


async def test_the_history_before_an_account_came_is_taken_as_it_is(keepers: Keepers) -> None:
    alice = await keepers.host.add()
    keepers.submit(alice, ROTATION, rotation_keys=[USER_KEY, SERVER_KEY])
    keepers.submit(alice, USER, also_known_as=["at://alice.pds.test", "at://more.test"])
    assert (await keepers.look())["foreign"] == 0
    keepers.submit(alice, USER, also_known_as=["at://alice.pds.test"])
    assert (await keepers.look())["foreign"] == 1


async def test_an_account_that_was_moved_away_is_watched_for_days_then_forgotten(
    keepers: Keepers,
) -> None:
    """Whoever steals an account gets it deactivated here, too (ACC-6): that must not blind us."""
    alice = await keepers.host.add()
    await keepers.keys.add(alice.did, USER_KEY, order=ADMIN)
    await keepers.look()
    now_us = keepers.host.clock.now_us()
    await keepers.host.real_engine.transact(
        "test.deactivate",
        lambda txn: update_deactivation(txn, alice.aid, deactivated_at=now_us, delete_after=None),
    )
    keepers.steal(alice, USER)
    assert (await keepers.look())["foreign"] == 1
    keepers.host.clock.advance(5 * 24 * HOUR_S)
    assert (await keepers.look())["looked"] == 0
    assert await keepers.host.count("plc_watch") == 0


async def test_a_directory_that_does_not_answer_says_nothing_and_is_asked_again(
    keepers: Keepers,
) -> None:
    alice = await keepers.host.add()
    await keepers.look()
    keepers.steal(alice, ROTATION)
    keepers.host.plc.mood = Mood.FAULTY
    assert await keepers.look() == {"looked": 0, "foreign": 0, "unknown": 1}
    keepers.host.plc.mood = Mood.KIND
    assert (await keepers.watch.sweep())["looked"] == 1


async def test_a_directory_in_trouble_is_not_asked_about_everybody(keepers: Keepers) -> None:
    for number in range(8):
        await keepers.host.add(f"account{number}.pds.test")
    keepers.host.plc.mood = Mood.FAULTY
    assert await keepers.look() == {"looked": 0, "foreign": 0, "unknown": 5}


async def test_a_log_that_did_not_grow_is_not_fetched(keepers: Keepers) -> None:
    alice = await keepers.host.add()
    await keepers.look()
    keepers.host.plc.requests.clear()
    await keepers.look()
    assert keepers.host.plc.requests == [("GET", f"/{alice.did}/log/last")]
    await keepers.watch.sweep()
    assert len(keepers.host.plc.requests) == 1  # Not due again yet.


async def test_who_was_not_told_for_a_crash_is_told_later(keepers: Keepers) -> None:
    alice = await keepers.host.add()
    await keepers.keys.add(alice.did, USER_KEY, order=ADMIN)
    await keepers.look()
    keepers.steal(alice, USER)

    async def crash() -> None:
        raise KeyboardInterrupt

    keepers.watch._tell = crash  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        await keepers.look()
    del keepers.watch._tell  # type: ignore[attr-defined]
    await keepers.look()
    assert len(keepers.alarms()) == 2


async def test_a_deleted_account_leaves_no_row(keepers: Keepers) -> None:
    alice = await keepers.host.add()
    await keepers.keys.add(alice.did, USER_KEY, order=ADMIN)
    await keepers.look()
    keepers.steal(alice, USER)
    await keepers.look()
    await keepers.host.real_engine.transact("test.delete", delete_account_rows, alice.aid)
    assert await keepers.host.count("plc_watch") == 0
    assert await keepers.host.count("plc_operation") == 0


# Taking back


async def test_our_key_takes_back_what_a_lower_one_has_done(keepers: Keepers) -> None:
    """(ACC-62, ID-57): the countermand nullifies it, and states what was before it."""
    alice = await keepers.host.add()
    low = OTHER.public_key.did_key
    keepers.submit(alice, ROTATION, rotation_keys=[SERVER_KEY, low])
    await keepers.look()
    before = keepers.host.state(alice.did)
    keepers.steal(alice, OTHER)
    second = keepers.submit(alice, OTHER, rotation_keys=[low])
    await keepers.look()
    plan = await keepers.countermands.plan(alice.did)
    assert plan.obstacle is None
    assert (plan.signer, plan.keys) == (low, (SERVER_KEY,))
    assert plan.undone[-1] == second.cid
    await keepers.countermands.carry_out(alice.did, order=ADMIN)
    assert keepers.host.state(alice.did) == before
    assert (await keepers.look())["foreign"] == 0
    told = await refusal(keepers.countermands.plan(alice.did))
    assert told == "There is no foreign operation that can still be taken back"


async def test_against_a_key_above_ours_the_owner_has_to_sign(keepers: Keepers) -> None:
    alice = await keepers.host.add()
    stolen = OTHER.public_key.did_key
    keepers.submit(alice, ROTATION, rotation_keys=[USER_KEY, stolen, SERVER_KEY])
    await keepers.look()
    before = keepers.host.state(alice.did)
    keepers.steal(alice, OTHER)
    await keepers.look()
    plan = await keepers.countermands.plan(alice.did)
    assert plan.obstacle == "that operation was signed with a key above this one"
    told = await refusal(keepers.countermands.carry_out(alice.did, order=ADMIN))
    assert USER_KEY in told
    for signer, fields, why in (
        (OTHER, plan.fields, "not signed by an allowed rotation key"),
        (USER, {**plan.fields, "alsoKnownAs": []}, "not the countermand"),
    ):
        wrong = sign_operation(fields, signer).to_json()
        told = await refusal(keepers.countermands.carry_out(alice.did, order=ADMIN, signed=wrong))
        assert why in told
    assert keepers.host.state(alice.did) != before
    right = sign_operation(plan.fields, USER).to_json()
    await keepers.countermands.carry_out(alice.did, order=ADMIN, signed=right)
    assert keepers.host.state(alice.did) == before
    assert (await keepers.look())["foreign"] == 0  # It was passed on here.


async def test_what_cannot_be_taken_back_is_explained(keepers: Keepers) -> None:
    alice = await keepers.host.add()
    await keepers.keys.add(alice.did, USER_KEY, order=ADMIN)
    await keepers.look()
    foreign = keepers.steal(alice, USER)
    told = await refusal(keepers.countermands.carry_out(alice.did, order=ADMIN, cid=foreign.cid))
    assert "was the first rotation key" in told
    keepers.host.clock.advance(73 * HOUR_S)
    told = await refusal(keepers.countermands.plan(alice.did, foreign.cid))
    assert "too late" in told
    told = await refusal(keepers.countermands.plan(alice.did, "bafyreib"))
    assert "not in effect" in told


async def test_a_rehearsed_countermand_sends_nothing(keepers: Keepers) -> None:
    alice = await keepers.host.add()
    keepers.submit(alice, ROTATION, rotation_keys=[SERVER_KEY, OTHER.public_key.did_key])
    await keepers.look()
    foreign = keepers.steal(alice, OTHER)
    count = keepers.host.operations_of(alice.did)
    rehearsal = Order("cli:tests", is_rehearsal=True)
    plan = await keepers.countermands.carry_out(alice.did, order=rehearsal, cid=foreign.cid)
    assert plan.to_json()["undone"] == [foreign.cid]
    assert keepers.host.operations_of(alice.did) == count
