"""Accounts that move between two hosts, over real HTTP: all arrives, and nothing else changes.

Spec: (ACC-20..24, ACC-40, ACC-41, ACC-50..59, ACC-63)
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pds.errors import RequestError
from pds.protocol.diddoc import render_web_document
from pds.protocol.keys import parse_did_key
from pds.protocol.syntax import Did
from pds.services.migration import MoveInRequest, MoveOutRequest
from pds.services.migration_work import Given
from tests.fakes.web import running_web
from tests.scenarios.moving import (
    NEW_PASSWORD,
    OWN_KEY,
    finish,
    log_of,
    login,
    make_traveller,
    never_activating,
    plc_code,
    request_for,
    signed_by_owner,
    signing_key,
    snapshot,
    stage,
    state_of,
    two_hosts,
)
from tests.scenarios.test_account_life import MOVER_SIGNER, WebIdentity
from tests.support_client import Person, XrpcError, sign_up


async def refusal(act: Any) -> str:
    with pytest.raises(RequestError) as caught:
        await act
    return caught.value.name


async def test_an_account_moves_in_with_all_that_it_has(tmp_path: Path) -> None:
    """ACC-50: until the identity is changed, nothing has changed at the old host."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts)
        old_key = signing_key(hosts, alice.did)
        before = await snapshot(alice.client, alice.did, old_key)
        plan = await hosts.migration.plan_in(alice.did)
        assert plan["content"]["records"] == 16
        assert plan["content"]["blobs"] == 5
        assert (plan["handle"], plan["handleKind"]) == ("alice.new.test", "old_host")
        view = await stage(hosts, alice)
        assert (view["status"], view["step"]) == ("waiting", "approve"), view
        assert view["problem"]["code"] == "plc_token_needed"
        assert (await alice.client.get("com.atproto.server.getSession"))["active"] is True
        await alice.post("written while the move waits")
        view = await finish(hosts, alice)
        assert view["status"] == "done", view
        assert view["warnings"] == []
        client = await login(hosts.new, alice.did, NEW_PASSWORD)
        after = await snapshot(client, alice.did, signing_key(hosts, alice.did))
        assert len(after.records) == len(before.records) + 1
        assert before.records.items() <= after.records.items()
        assert (after.blobs, after.preferences) == (before.blobs, before.preferences)
        session = await alice.client.get("com.atproto.server.getSession")
        assert (session["active"], session["status"]) == (False, "deactivated")
        state = state_of(hosts.plc, alice.did)
        ours = hosts.migration.parts.rotation_signer.public_key.did_key
        assert state.rotation_keys == (OWN_KEY.public_key.did_key, ours)
        assert state.services["bsky_chat"].endpoint == "https://chat.example"
        assert state.also_known_as == ("at://alice.new.test",)
        assert view["pausedMs"] < 2000


async def test_a_move_out_is_the_mirror_and_the_account_may_come_back(tmp_path: Path) -> None:
    """ACC-24, ACC-43: our own key signs; who returns takes up the account of the earlier stay."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts)
        before = await snapshot(alice.client, alice.did, signing_key(hosts, alice.did))
        leaving = hosts.old.server.services.migration
        request = MoveOutRequest(
            account=alice.did,
            url=hosts.new.url.replace("127.0.0.1", "localhost"),
            handle="alice.new.test",
            owner_password=alice.password,
            given=Given(password=NEW_PASSWORD),
        )
        wrong = replace(request, owner_password="not the password")
        assert await refusal(leaving.start_out(wrong)) == "AuthenticationRequired"
        await leaving.start_out(request)
        view = await leaving.settle(alice.did)
        assert (view["status"], view["warnings"]) == ("done", []), view
        client = await login(hosts.new, alice.did, NEW_PASSWORD)
        assert await snapshot(client, alice.did, signing_key(hosts, alice.did)) == before
        assert (await client.get("com.atproto.server.getSession"))["active"] is True
        session = await alice.client.get("com.atproto.server.getSession")
        assert session["status"] == "deactivated"
        ours = hosts.migration.parts.rotation_signer.public_key.did_key
        assert state_of(hosts.plc, alice.did).rotation_keys == (OWN_KEY.public_key.did_key, ours)
        assert "bsky_chat" in state_of(hosts.plc, alice.did).services
        moved = Person(alice.did, "alice.new.test", NEW_PASSWORD, "", client)
        await moved.post("written at the new host")
        # And back, by the host that was left.
        back = MoveInRequest(
            account=alice.did,
            handle="alice.old.test",
            given=Given(password=NEW_PASSWORD, new_password="wrong"),
        )
        assert await refusal(leaving.start_in(back)) == "password_needed"
        right = replace(back, given=Given(password=NEW_PASSWORD, new_password=alice.password))
        await leaving.start_in(right)
        await leaving.settle(alice.did)
        await leaving.go_on(alice.did, Given(requests_token=True))
        await leaving.go_on(alice.did, Given(plc_token=await plc_code(hosts.new)))
        view = await leaving.settle(alice.did)
        assert (view["status"], view["warnings"]) == ("done", []), view
        again = await login(hosts.old, alice.did, alice.password)
        after = await snapshot(again, alice.did, signing_key(hosts, alice.did))
        assert len(after.records) == len(before.records) + 1
        assert after.blobs == before.blobs


async def test_a_service_token_moves_what_is_public(tmp_path: Path) -> None:
    """ACC-20: without a session the owner's own key signs, and preferences stay behind."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts)
        asked = MoveInRequest(account=alice.did, email="alice@example.test")
        assert await refusal(hosts.migration.start_in(asked)) == "login_needed"
        answer = await alice.client.get(
            "com.atproto.server.getServiceAuth",
            aud=hosts.new.server.config.service_did,
            lxm="com.atproto.server.createAccount",
        )
        given = Given(service_token=answer["token"], new_password=NEW_PASSWORD)
        await hosts.migration.start_in(replace(asked, given=given))
        view = await hosts.migration.settle(alice.did)
        assert view["problem"]["code"] == "plc_token_needed"
        client = await login(hosts.new, alice.did, NEW_PASSWORD)
        fields = await client.get("com.atproto.identity.getRecommendedDidCredentials")
        operation = signed_by_owner(hosts, alice.did, fields)
        await hosts.migration.go_on(alice.did, Given(operation=operation))
        view = await hosts.migration.settle(alice.did)
        assert view["status"] == "done"
        assert len(view["warnings"]) == 2
        assert "Preferences" in view["warnings"][0]
        assert "Deactivate the account at" in view["warnings"][1]
        after = await snapshot(client, alice.did, signing_key(hosts, alice.did))
        assert (len(after.records), len(after.blobs), after.preferences) == (16, 5, [])


async def test_an_account_that_somebody_else_opened_meanwhile_makes_way(tmp_path: Path) -> None:
    """ACC-24: an app at the old host could open it first, to have its own ways in for later."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=0)
        started = MoveInRequest(account=alice.did, given=Given(password=alice.password))
        assert await refusal(hosts.migration.start_in(started)) == "password_needed"
        token = await alice.client.get(
            "com.atproto.server.getServiceAuth",
            aud=hosts.new.server.config.service_did,
            lxm="com.atproto.server.createAccount",
        )
        thief = await hosts.new.client.with_token(token["token"]).post(
            "com.atproto.server.createAccount",
            did=alice.did,
            handle="thief.new.test",
            email="thief@example.test",
            password="known to the thief",
        )
        client = hosts.new.client.with_token(thief["accessJwt"])
        made = await client.post("com.atproto.server.createAppPassword", name="later")
        assert await refusal(hosts.migration.start_in(started)) == "password_needed"
        view = await stage(hosts, alice)
        assert view["problem"]["code"] == "plc_token_needed"
        for password in ("known to the thief", made["password"]):
            with pytest.raises(XrpcError):
                await login(hosts.new, alice.did, password)
        owner = await login(hosts.new, alice.did, NEW_PASSWORD)
        session = await owner.get("com.atproto.server.getSession")
        assert (session["handle"], "thief" in session["email"]) == ("alice.new.test", False)


async def test_a_move_can_be_undone_until_the_account_is_active(tmp_path: Path) -> None:
    """ACC-50: before the switch by deletion here, after it by an operation that says what was."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts)
        before = await snapshot(alice.client, alice.did, signing_key(hosts, alice.did))
        await stage(hosts, alice)
        view = await hosts.migration.undo(alice.did)
        assert view["status"] == "undone"
        assert await hosts.new.server.services.accounts.lookup(alice.did) is None
        assert len(log_of(hosts.plc, alice.did).entries) == 2
        assert await refusal(hosts.migration.undo(alice.did)) == "NotFound"
        # Again, up to the submitted operation.
        migration = never_activating(hosts)
        identity = state_of(hosts.plc, alice.did)
        await migration.start_in(request_for(alice))
        await migration.settle(alice.did)
        await migration.go_on(alice.did, Given(requests_token=True))
        await migration.go_on(alice.did, Given(plc_token=await plc_code(hosts.old)))
        view = await migration.settle(alice.did)
        assert (view["step"], view["canUndo"]) == ("activate", True)
        assert state_of(hosts.plc, alice.did) != identity
        await hosts.migration.undo(alice.did)
        assert state_of(hosts.plc, alice.did) == identity
        assert await hosts.new.server.services.accounts.lookup(alice.did) is None
        key = signing_key(hosts, alice.did)
        assert await snapshot(alice.client, alice.did, key) == before
        await alice.post("still here")
        # And in the end it moves.
        await stage(hosts, alice)
        view = await finish(hosts, alice)
        assert view["status"] == "done"
        assert await refusal(hosts.migration.undo(alice.did)) == "NotFound"


async def test_what_is_wrong_is_said_by_name_and_nothing_is_left_behind(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=0)
        migration = hosts.migration
        right = request_for(alice)
        for account, code in (
            ("did:plc:ewvi7nxzyoun6zhxrhs64oiz", "account_not_found"),
            ("no handle at all", "account_not_found"),
        ):
            assert await refusal(migration.start_in(replace(right, account=account))) == code
            assert await refusal(migration.plan_in(account)) == code
        wrong = Given(password="wrong", new_password=NEW_PASSWORD)
        assert await refusal(migration.start_in(replace(right, given=wrong))) == "login_needed"
        made = await alice.client.post("com.atproto.server.createAppPassword", name="app")
        app = Given(password=made["password"], new_password=NEW_PASSWORD)
        assert await refusal(migration.start_in(replace(right, given=app))) == "login_needed"
        taken = await sign_up(hosts.new.client, "taken.new.test")
        other = replace(right, handle=taken.handle)
        assert await refusal(migration.start_in(other)) == "account_refused"
        foreign = await taken.client.get(
            "com.atproto.server.getServiceAuth",
            aud=hosts.new.server.config.service_did,
            lxm="com.atproto.server.createAccount",
        )
        given = Given(service_token=foreign["token"], new_password=NEW_PASSWORD)
        assert await refusal(migration.start_in(replace(right, given=given))) == (
            "other_host_refused"
        )
        assert await hosts.new.server.services.accounts.lookup(alice.did) is None
        assert await refusal(migration.go_on(alice.did)) == "password_needed"
        # The right order goes on with the same move.
        await migration.start_in(right)
        assert (await migration.settle(alice.did))["step"] == "approve"
        wrong_code = Given(plc_token="AAAAA-AAAAA")
        await migration.go_on(alice.did, wrong_code)
        view = await migration.settle(alice.did)
        assert (view["step"], view["problem"]["code"]) == ("approve", "plc_token_refused")
        assert (await finish(hosts, alice))["status"] == "done"
        assert await refusal(migration.start_in(right)) == "already_here"
        assert await refusal(migration.plan_in(alice.did)) == "already_here"
        moves, cursor = await migration.list_all(limit=1)
        assert (len(moves), cursor) == (1, None)


async def test_secrets_of_a_move_are_sealed_and_gone_at_its_end(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=0)
        await stage(hosts, alice)
        sql = "SELECT state, secrets FROM move"
        engine = hosts.new.server.engine
        state, sealed = await engine.read("test", lambda txn: txn.read_one(sql))
        assert b"eyJ" not in bytes(state) + bytes(sealed)
        assert alice.password.encode() not in bytes(state) + bytes(sealed)
        await finish(hosts, alice)
        state, sealed = await engine.read("test", lambda txn: txn.read_one(sql))
        assert sealed is None
        assert b"eyJ" not in bytes(state)
        assert b"@example" not in bytes(state)


async def test_a_did_web_account_moves_when_its_owner_has_published(tmp_path: Path) -> None:
    """ACC-58: no operation, no code; the document that is shown has to be there."""
    async with two_hosts(tmp_path) as hosts, running_web() as web:
        identity = WebIdentity(web, Did(f"did:web:localhost%3A{web.port}"))
        identity.publish(MOVER_SIGNER.public_key, "https://older.example")
        session = await hosts.old.client.with_token(identity.token(hosts.old)).post(
            "com.atproto.server.createAccount",
            handle="mover.old.test",
            did=identity.did,
            email="mover@example.test",
            password="mover-password",
        )
        client = hosts.old.client.with_token(session["accessJwt"])
        asked = await client.get("com.atproto.identity.getRecommendedDidCredentials")
        old_key = parse_did_key(asked["verificationMethods"]["atproto"])
        document = render_web_document(
            identity.did,
            services={"atproto_pds": ("AtprotoPersonalDataServer", hosts.old.url)},
            keys={"atproto": old_key},
            also_known_as=("at://mover.old.test",),
        )
        web.set_page("localhost", "/.well-known/did.json", json.dumps(document).encode())
        await client.post("com.atproto.server.activateAccount")
        mover = Person(identity.did, "mover.old.test", "mover-password", "", client)
        await mover.post("hello")
        view = await stage(hosts, mover, handle="mover.new.test")
        assert (view["status"], view["problem"]["code"]) == ("waiting", "document_needed")
        assert (
            view["document"]["service"][0]["serviceEndpoint"] == hosts.new.server.config.public_url
        )
        await hosts.migration.go_on(mover.did)
        view = await hosts.migration.settle(mover.did)
        assert view["problem"]["code"] == "document_needed"
        web.set_page("localhost", "/.well-known/did.json", json.dumps(view["document"]).encode())
        await mover.post("signed with a key that the document no longer has")
        await hosts.migration.go_on(mover.did)
        view = await hosts.migration.settle(mover.did)
        assert (view["status"], view["warnings"]) == ("done", []), view
        there = await login(hosts.new, "mover.new.test", NEW_PASSWORD)
        key = view["document"]["verificationMethod"][0]["publicKeyMultibase"]
        after = await snapshot(there, mover.did, f"did:key:{key}")
        assert len(after.records) == 2
