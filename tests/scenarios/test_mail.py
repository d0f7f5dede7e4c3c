"""Mailed codes over real HTTP: from sign-up to a new address and a new password."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pds.config import Config
from pds.services.mail_transports import MailSettings, parse_mail_url
from tests.fakes.smtp import FakeSmtp, smtp_server
from tests.scenarios.conftest import Host, host_in
from tests.support_client import Client, Person, XrpcError, sign_up

SERVER = "com.atproto.server"


async def error_of(call: Any) -> tuple[int, str]:
    with pytest.raises(XrpcError) as refused:
        await call
    return refused.value.status, refused.value.name


async def mailed(host: Host, purpose: str) -> str:
    """The code in the latest mail, which is for `purpose`."""
    await host.server.services.account_mails.settle()
    mail = host.mailbox.received()[-1].mail
    assert mail.purpose == purpose
    found = re.search(r"^[A-Z2-7]{5}-[A-Z2-7]{5}$", mail.text, re.MULTILINE)
    assert found is not None
    return found[0]


async def signed_in(client: Client, name: str, password: str) -> Client:
    answer = await client.post(f"{SERVER}.createSession", identifier=name, password=password)
    return client.with_token(answer["accessJwt"])


async def test_address_is_confirmed_then_changed_with_consent(host: Host) -> None:
    """ACC-36, ACC-38."""
    alice = await sign_up(host.client, "alice.test")
    await alice.client.post(f"{SERVER}.requestEmailConfirmation")
    code = await mailed(host, "confirm_email")
    other = alice.client.post(f"{SERVER}.confirmEmail", email="else@example.test", token=code)
    assert await error_of(other) == (400, "InvalidEmail")
    await alice.client.post(f"{SERVER}.confirmEmail", email="ALICE@example.test", token=code)
    assert (await alice.client.get(f"{SERVER}.getSession"))["emailConfirmed"] is True

    asked = await alice.client.post(f"{SERVER}.requestEmailUpdate")
    assert asked == {"tokenRequired": True}
    code = await mailed(host, "update_email")
    update = f"{SERVER}.updateEmail"
    missing = alice.client.post(update, email="new@example.test")
    assert await error_of(missing) == (400, "TokenRequired")
    wrong = alice.client.post(update, email="new@example.test", token="AAAAA-AAAAA")
    assert await error_of(wrong) == (400, "InvalidToken")
    factor = alice.client.post(update, email="alice@example.test", emailAuthFactor=True, token=code)
    assert await error_of(factor) == (400, "InvalidRequest")
    await alice.client.post(update, email="New@example.test", token=code)
    session = await alice.client.get(f"{SERVER}.getSession")
    assert (session["email"], session["emailConfirmed"]) == ("new@example.test", False)
    assert await alice.client.post(f"{SERVER}.requestEmailUpdate") == {"tokenRequired": False}


async def test_password_is_reset_and_everybody_signed_out(host: Host) -> None:
    """ACC-32, ACC-37, XRPC-26."""
    alice = await sign_up(host.client, "alice.test")
    request = f"{SERVER}.requestPasswordReset"
    assert not await host.client.post(request, email="nobody@example.test")
    assert not await host.client.post(request, email="Alice@example.test")
    code = await mailed(host, "reset_password")
    reset = f"{SERVER}.resetPassword"
    wrong = host.client.post(reset, token="AAAAA-AAAAA", password="another password")
    assert await error_of(wrong) == (400, "InvalidToken")
    short = host.client.post(reset, token=code, password="short")
    assert await error_of(short) == (400, "InvalidRequest")
    await host.client.post(reset, token=code, password="another password")
    assert await error_of(alice.client.get(f"{SERVER}.getSession")) == (400, "ExpiredToken")
    refresh = host.client.with_token(alice.refresh_token).post(f"{SERVER}.refreshSession")
    assert await error_of(refresh) == (400, "ExpiredToken")
    old = signed_in(host.client, "alice.test", alice.password)
    assert await error_of(old) == (401, "AuthenticationRequired")
    await signed_in(host.client, "alice.test", "another password")
    again = host.client.post(reset, token=code, password="another password")
    assert await error_of(again) == (400, "InvalidToken")


async def test_codes_cannot_be_guessed_one_after_another(host: Host) -> None:
    """ACC-36: the fifth wrong code ends the right one."""
    alice = await sign_up(host.client, "alice.test")
    await alice.client.post(f"{SERVER}.requestEmailConfirmation")
    code = await mailed(host, "confirm_email")

    async def confirm(token: str) -> tuple[int, str]:
        call = alice.client.post(f"{SERVER}.confirmEmail", email="alice@example.test", token=token)
        return await error_of(call)

    for number in range(5):
        assert await confirm(f"AAAAA-AAAA{'ABCDE'[number]}") == (400, "InvalidToken")
    assert await confirm(code) == (400, "InvalidToken")


async def test_deletion_is_asked_for_by_mail(host: Host) -> None:
    """ACC-36, ACC-46."""
    alice = await sign_up(host.client, "alice.test")
    await alice.client.post(f"{SERVER}.requestAccountDelete")
    code = await mailed(host, "delete_account")
    await host.client.post(
        f"{SERVER}.deleteAccount", did=alice.did, password=alice.password, token=code
    )
    gone = signed_in(host.client, "alice.test", alice.password)
    assert await error_of(gone) == (401, "AuthenticationRequired")


async def test_app_passwords_touch_neither_mail_nor_invites(host: Host) -> None:
    """ACC-34."""
    alice = await sign_up(host.client, "alice.test")
    made = await alice.client.post(f"{SERVER}.createAppPassword", name="phone", privileged=True)
    phone = await signed_in(host.client, "alice.test", made["password"])
    given = {"email": "a@example.test", "token": "AAAAA-AAAAA"}
    for method, verb, fields in (
        ("requestEmailConfirmation", "post", {}),
        ("confirmEmail", "post", given),
        ("requestEmailUpdate", "post", {}),
        ("updateEmail", "post", given),
        ("requestAccountDelete", "post", {}),
        ("getAccountInviteCodes", "get", {}),
    ):
        call = getattr(phone, verb)(f"{SERVER}.{method}", **fields)
        assert await error_of(call) == (400, "InvalidToken")
        call = getattr(host.client, verb)(f"{SERVER}.{method}", **fields)
        assert await error_of(call) == (401, "AuthMissing")


async def test_invite_codes_are_earned_and_spent(tmp_path: Path) -> None:
    """ACC-25, ACC-26."""

    def earning(config: Config) -> Config:
        sign_up = replace(config.sign_up, invite_required=True, invite_interval_s=0.001)
        return replace(config, sign_up=sign_up)

    async with host_in(tmp_path, change=earning) as host:
        first = await host.server.services.invites.create(code_count=1, use_count=1)
        alice = await sign_up(host.client, "alice.test", inviteCode=first[0].codes[0])
        listed: list[Any] = []
        while len(listed) < 5:
            listed = (await alice.client.get(f"{SERVER}.getAccountInviteCodes"))["codes"]
        code = listed[0]
        assert (code["available"], code["createdBy"], code["uses"]) == (1, alice.did, [])
        bob = await sign_up(host.client, "bob.test", inviteCode=code["code"])
        unused = await alice.client.get(
            f"{SERVER}.getAccountInviteCodes", includeUsed=False, createAvailable=False
        )
        assert code["code"] not in {entry["code"] for entry in unused["codes"]}
        used = await alice.client.get(f"{SERVER}.getAccountInviteCodes", createAvailable=False)
        uses = {entry["code"]: entry["uses"] for entry in used["codes"]}
        assert [use["usedBy"] for use in uses[code["code"]]] == [bob.did]


async def with_smtp(folder: Path, fake: FakeSmtp | None, act: Any) -> None:
    """Run `act(host, alice)` on a host whose mail goes to a real server, or nowhere."""

    def mail(config: Config) -> Config:
        if fake is None:
            return config
        settings = MailSettings(
            smtp_url=parse_mail_url(f"smtp://127.0.0.1:{fake.port}"),
            from_address="noreply@pds.example.com",
        )
        return replace(config, mail=settings)

    async with host_in(folder, change=mail, with_mailbox=False) as host:
        alice = await sign_up(host.client, "alice.test")
        await act(host, alice)


async def test_mail_goes_out_by_smtp_and_an_outage_is_told(tmp_path: Path) -> None:
    """ACC-37."""
    async with smtp_server() as fake:

        async def act(host: Host, alice: Person) -> None:
            await host.server.services.account_mails.settle()
            await alice.client.post(f"{SERVER}.requestEmailConfirmation")
            welcome, confirmation = fake.taken
            assert welcome.recipients == confirmation.recipients == ["alice@example.test"]
            assert confirmation.message["Subject"].startswith("Confirm your address")
            fake.answers["MAIL"] = "451 Not now"
            request = alice.client.post(f"{SERVER}.requestEmailConfirmation")
            assert await error_of(request) == (503, "NotEnoughResources")
            assert not await host.client.post(
                f"{SERVER}.requestPasswordReset", email="alice@example.test"
            )

        await with_smtp(tmp_path, fake, act)


async def test_host_without_mail_works_and_says_what_it_cannot(tmp_path: Path) -> None:
    """ACC-37."""

    async def act(host: Host, alice: Person) -> None:
        for method, fields in (
            ("requestEmailConfirmation", {}),
            ("requestAccountDelete", {}),
            ("requestPasswordReset", {"email": "alice@example.test"}),
            ("requestPasswordReset", {"email": "nobody@example.test"}),
        ):
            with pytest.raises(XrpcError) as refused:
                await alice.client.post(f"{SERVER}.{method}", **fields)
            assert (refused.value.status, refused.value.name) == (400, "InvalidRequest")
            assert "sends no mail" in refused.value.body["message"]
        assert await alice.client.post(f"{SERVER}.requestEmailUpdate") == {"tokenRequired": False}
        await alice.client.post(f"{SERVER}.updateEmail", email="new@example.test")

    await with_smtp(tmp_path, None, act)


async def test_mailbox_page_shows_both_parts_without_running_anything(host: Host) -> None:
    alice = await sign_up(host.client, "alice.test")
    await alice.client.post(f"{SERVER}.requestEmailConfirmation")
    await host.server.services.account_mails.settle()
    kept = host.mailbox.received()[-1]
    async with host.client.http.get(f"{host.client.url}/mailbox/{kept.at_us}") as answer:
        page = await answer.text()
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert re.search(r'<iframe class="mail" sandbox title="[^"]+" srcdoc="&lt;!doctype', page)
    code = await mailed(host, "confirm_email")
    assert page.count(code) == 2
