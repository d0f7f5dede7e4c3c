"""Every method against every credential in every state of an account, over real HTTP.

What must come out is not written here: it follows from what the methods declare (`pds/xrpc/access`,
shown in `docs/reference/access.md`). Where a caller is let in, a harmless request must get the
answer that `access_requests` says.

Spec: (XRPC-20, XRPC-21, XRPC-24, XRPC-28, XRPC-43, XRPC-64, ACC-5, ACC-45, ACC-47, ACC-48, SYNC-70)
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pds.app import METHOD_TABLES
from pds.config import Config
from pds.protocol.diddoc import parse_did_document
from pds.protocol.jwt import decode_jwt
from pds.protocol.keys import Signer, make_signer
from pds.protocol.service_auth import sign_service_token
from pds.protocol.syntax import Did, Nsid
from pds.services.audit import Order
from pds.services.moderation import AccountChange
from pds.services.principal import Scope
from pds.services.session_tokens import SessionTokens
from pds.xrpc.access import (
    GONE,
    MODERATORS,
    OF_ACCOUNTS,
    PROXIED,
    REPORT,
    SERVICES,
    STOPPED,
    Access,
    Allows,
    Asker,
    Credential,
    Refusal,
    State,
    refusal,
    subject_refusal,
)
from pds.xrpc.auth import Auth
from tests.scenarios.access_requests import ELSEWHERE, NOBODY, PNG, RECORD, REQUESTS, Named, Request
from tests.scenarios.conftest import Host, host_in
from tests.support_client import Client, Person, sign_up

SERVER = "com.atproto.server."
ORDER = Order("cli:test")
STRANGER = Did("did:web:stranger.example.com")
MODERATOR = Did("did:web:mod.example.com")
STRANGER_SIGNER = make_signer("k256", b"\x51" * 32)
MODERATOR_SIGNER = make_signer("k256", b"\x52" * 32)
WRONG_SIGNER = make_signer("k256", b"\x53" * 32)
ELSEWHERE_ACCESS = {"com.example.thing.get": PROXIED, "com.atproto.moderation.createReport": REPORT}
CHANGES = {
    State.DEACTIVATED: AccountChange(deactivated=True),
    State.SUSPENDED: AccountChange(suspended=True),
    State.TAKENDOWN: AccountChange(takedown=True),
}
AT_ONCE = 16
"""Requests under way at a time."""


@dataclass
class Account:
    """One account in its state, with everything that was ever good to show for it."""

    state: State
    named: Named
    tokens: dict[Credential, str] = field(default_factory=dict)
    service_tokens: dict[tuple[str, Credential], str] = field(default_factory=dict)
    spare_refresh: str = ""


@dataclass
class Town:
    """A server with an account in each state."""

    host: Host
    http: aiohttp.ClientSession
    callers: dict[State, Account]
    subjects: dict[State, Account]
    open: Account
    methods: dict[str, Access]

    def header(self, nsid: str, credential: Credential, account: Account) -> str | None:
        """Return what to show; a service token works once, so each is made for one request."""
        match credential:
            case Credential.NONE:
                return None
            case Credential.ADMIN:
                return basic(self.host.admin_password)
            case Credential.WRONG_ADMIN:
                return basic("wrong")
        if credential in MODERATORS:
            return "Bearer " + self.moderator_token(nsid, credential)
        if credential in SERVICES:
            return "Bearer " + account.service_tokens[nsid, credential]
        if credential is Credential.REFRESH and nsid.endswith(".deleteSession"):
            return "Bearer " + account.spare_refresh
        return "Bearer " + account.tokens[credential]

    def moderator_token(self, nsid: str, credential: Credential) -> str:
        return service_token(
            self.host,
            MODERATOR_SIGNER,
            f"{MODERATOR}#atproto_labeler",
            nsid,
            wrong_lxm=credential is Credential.MODERATOR_WRONG_LXM,
            wrong_aud=credential is Credential.MODERATOR_WRONG_AUD,
        )

    async def ask(
        self, nsid: str, request: Request, named: Named, header: str | None
    ) -> tuple[int, str]:
        """Send a request; return status and error name."""
        method = self.host.server.services.catalog.method(nsid)
        is_get = method.kind != "procedure" if method is not None else nsid.endswith("get")
        headers = {} if header is None else {"Authorization": header}
        fields = None if request.fields is None else dict(request.fields(named))
        options: dict[str, Any] = {}
        if is_get:
            options["params"] = fields
        elif request.content is not None:
            options["data"] = request.content
            headers["Content-Type"] = request.content_type
        elif fields is not None:
            options["data"] = json.dumps(fields).encode()
            headers["Content-Type"] = "application/json"
        url = f"{self.host.url}/xrpc/{nsid}"
        verb = "GET" if is_get else "POST"
        async with self.http.request(verb, url, headers=headers, **options) as answer:
            content = await answer.read()
            if answer.status < 300:
                return answer.status, ""
            return answer.status, json.loads(content)["error"]

    async def put_back(self) -> None:
        """Undo what the last method has done to the callers."""
        for state in (State.ACTIVE, State.DEACTIVATED):
            change = AccountChange(deactivated=state is State.DEACTIVATED)
            await self.host.server.services.operator.moderation.change_account(
                Did(self.callers[state].named.did), change, ORDER
            )


_numbers = iter(range(1_000_000))


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()


def service_token(
    host: Host,
    signer: Signer,
    iss: str,
    nsid: str,
    *,
    wrong_lxm: bool = False,
    wrong_aud: bool = False,
) -> str:
    now_s = int(time.time())
    return sign_service_token(
        signer,
        iss=Did(iss),
        aud="did:web:other.example.com" if wrong_aud else host.server.config.service_did,
        lxm=Nsid("com.example.other" if wrong_lxm else nsid),
        iat=now_s,
        exp=now_s + 600,
        jti=f"matrix {next(_numbers)}",
    )


def all_methods() -> dict[str, Access]:
    served = {entry.nsid: entry.access for table in METHOD_TABLES for entry in table}
    return {**served, **ELSEWHERE_ACCESS}


def with_moderator(config: Config) -> Config:
    federation = replace(
        config.federation, mod_service_did=str(MODERATOR), mod_service_url="http://127.0.0.1:1"
    )
    return replace(config, federation=federation)


def key_method(did: Did, name: str, signer: Signer) -> dict[str, str]:
    return {
        "id": f"{did}{name}",
        "type": "Multikey",
        "controller": did,
        "publicKeyMultibase": signer.public_key.did_key.removeprefix("did:key:"),
    }


def know_strangers(host: Host) -> None:
    """Let the server know documents as if it had resolved them."""
    documents = {
        did: parse_did_document({"id": did, "verificationMethod": [method]}, did)
        for did, method in (
            (STRANGER, key_method(STRANGER, "#atproto", STRANGER_SIGNER)),
            (MODERATOR, key_method(MODERATOR, "#atproto_label", MODERATOR_SIGNER)),
        )
    }
    resolver = host.server.services.service_tokens._resolver
    real = resolver.resolve_did

    async def resolve_did(did: Did, *, refresh: bool = False) -> Any:
        known = documents.get(did)
        return await real(did, refresh=refresh) if known is None else known

    resolver.resolve_did = resolve_did


async def login(client: Client, person: Person, password: str, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await client.post(
        SERVER + "createSession", identifier=person.did, password=password, **more
    )
    return answer


async def signer_of(host: Host, did: str) -> Signer:
    """Return what the server signs with for an account."""
    tokens = host.server.services.service_tokens
    account = await host.server.services.accounts.lookup(did)
    assert account is not None
    assert account.key_id is not None
    return await tokens._signer(account, account.key_id)


def mint_all(host: Host, account: Account, signer: Signer) -> None:
    """Make the service tokens of an account: one for each method and kind."""
    for nsid in all_methods():
        for kind in SERVICES:
            account.service_tokens[nsid, kind] = service_token(
                host,
                WRONG_SIGNER if kind is Credential.SERVICE_WRONG_ISS else signer,
                account.named.did,
                nsid,
                wrong_lxm=kind is Credential.SERVICE_WRONG_LXM,
                wrong_aud=kind is Credential.SERVICE_WRONG_AUD,
            )


async def open_account(host: Host, name: str) -> tuple[Person, Named]:
    """Open an account with a record and a blob."""
    person = await sign_up(host.client, f"{name}.test")
    blob = await person.client.upload(PNG, "image/png")
    post = await person.create(
        RECORD["$type"],
        {
            **RECORD,
            "embed": {
                "$type": "app.bsky.embed.images",
                "images": [{"alt": "", "image": blob}],
            },
        },
    )
    named = Named(
        did=person.did,
        handle=person.handle,
        email=f"{name}@example.test",
        rkey=post["uri"].rpartition("/")[2],
        record=post["cid"],
        blob=blob["ref"]["$link"],
    )
    return person, named


async def caller_in(host: Host, state: State, name: str) -> Account:
    """Open an account, take all credentials, and bring it into its state."""
    person, named = await open_account(host, name)
    account = Account(state, named)
    moderation = host.server.services.operator.moderation
    did = Did(person.did)
    if state not in STOPPED:  # A narrow session from a takedown that was lifted.
        await moderation.change_account(did, AccountChange(takedown=True), ORDER)
        narrow = await login(host.client, person, person.password, allowTakendown=True)
        await moderation.change_account(did, AccountChange(takedown=False), ORDER)
    good, spare = await asyncio.gather(
        *(login(host.client, person, person.password) for _ in range(2))
    )
    person.client = host.client.with_token(good["accessJwt"])
    made = [
        await person.client.post(SERVER + "createAppPassword", name=kind, privileged=is_privileged)
        for kind, is_privileged in (("plain", False), ("privileged", True))
    ]
    app, privileged = await asyncio.gather(
        *(login(host.client, person, entry["password"]) for entry in made)
    )
    mint_all(host, account, await signer_of(host, person.did))
    if state in CHANGES:
        await moderation.change_account(did, CHANGES[state], ORDER)
    elif state is State.DELETED:
        await moderation.delete_account(did, ORDER)
    if state in STOPPED:
        narrow = await login(host.client, person, person.password, allowTakendown=True)
    account.spare_refresh = spare["refreshJwt"]
    account.tokens = {
        Credential.ACCESS: good["accessJwt"],
        Credential.REFRESH: good["refreshJwt"],
        Credential.APP_PASSWORD: app["accessJwt"],
        Credential.PRIVILEGED: privileged["accessJwt"],
        Credential.NARROW: narrow["accessJwt"],
    }
    return account


def unknown_caller(host: Host) -> Account:
    """Make credentials for a DID that never had an account here, signed as ours are."""
    config = host.server.config
    tokens = SessionTokens(
        secrets=[config.secrets.jwt_secret or ""], service_did=config.service_did
    )
    now_s = int(time.time())
    times = {"issued_s": now_s, "expires_s": now_s + 3600}
    account = Account(State.UNKNOWN, Named(STRANGER))
    for credential, scope in (
        (Credential.ACCESS, Scope.ACCESS),
        (Credential.APP_PASSWORD, Scope.APP_PASS),
        (Credential.PRIVILEGED, Scope.APP_PASS_PRIVILEGED),
        (Credential.NARROW, Scope.TAKENDOWN),
    ):
        account.tokens[credential] = tokens.issue_access(
            did=STRANGER, scope=scope, session_id="made up", **times
        )
    account.spare_refresh = account.tokens[Credential.REFRESH] = tokens.issue_refresh(
        did=STRANGER, token_id="made up", session_id="made up", **times
    )
    mint_all(host, account, STRANGER_SIGNER)
    return account


async def subject_in(host: Host, state: State, name: str) -> Account:
    """Open an account that operators may change as they like, and bring it into its state."""
    _, named = await open_account(host, name)
    moderation = host.server.services.operator.moderation
    if state in CHANGES:
        await moderation.change_account(Did(named.did), CHANGES[state], ORDER)
    elif state is State.DELETED:
        await moderation.delete_account(Did(named.did), ORDER)
    return Account(state, named)


@asynccontextmanager
async def town_in(folder: Path) -> AsyncIterator[Town]:
    async with host_in(folder, change=with_moderator) as host:
        know_strangers(host)
        callers = await asyncio.gather(
            *(
                caller_in(host, state, f"caller{number}")
                for number, state in enumerate(State)
                if state is not State.UNKNOWN
            )
        )
        subjects = await asyncio.gather(
            *(
                subject_in(host, state, f"subject{number}")
                for number, state in enumerate(State)
                if state is not State.UNKNOWN
            )
        )
        _, named = await open_account(host, "open")
        nobody = unknown_caller(host)
        yield Town(
            host=host,
            http=host.client.http,
            callers={**{each.state: each for each in callers}, State.UNKNOWN: nobody},
            subjects={
                **{each.state: each for each in subjects},
                State.UNKNOWN: Account(State.UNKNOWN, Named(NOBODY)),
            },
            open=Account(State.ACTIVE, named),
            methods=all_methods(),
        )


@dataclass
class Findings:
    """What was asked, and what came out otherwise than declared."""

    cells: int = 0
    wrong: list[str] = field(default_factory=list)

    def note(self, cell: str, got: tuple[int, str], expected: tuple[int, str]) -> None:
        self.cells += 1
        if got != expected:
            self.wrong.append(f"{cell}: {got}, not {expected}")


def adapted(nsid: str, request: Request, credential: Credential) -> Request:
    """Return the request to send with a credential, where it matters to a method."""
    if nsid == SERVER + "getServiceAuth":
        is_narrow = credential is Credential.NARROW
        lxm = SERVER + "createAccount" if is_narrow else "app.bsky.feed.getTimeline"
        return replace(request, fields=lambda _: {"aud": "did:web:example.com", "lxm": lxm})
    return request


def test_every_method_is_in_the_matrix() -> None:
    assert set(all_methods()) == {*REQUESTS, *ELSEWHERE}
    for nsid, access in all_methods().items():
        is_about_somebody = nsid.startswith("com.atproto.sync.get") or nsid in (
            "com.atproto.repo.getRecord",
            "com.atproto.repo.listRecords",
            "com.atproto.repo.describeRepo",
        )
        if is_about_somebody and nsid != "com.atproto.sync.getHostStatus":
            assert access.subject is not None, nsid


def test_writes_and_calls_elsewhere_need_an_active_account() -> None:
    """The table of XRPC-24: what is not named here is open to a deactivated account (ACC-5)."""
    taken = {
        allows: {n for n, a in all_methods().items() if a.allows is allows} for allows in Allows
    }
    writes = {"applyWrites", "createRecord", "deleteRecord", "putRecord"}
    views = {"getActorLikes", "getAuthorFeed", "getFeed", "getPostThread", "getTimeline"}
    assert taken[Allows.ACTIVE] == {
        *(f"com.atproto.repo.{name}" for name in writes),
        *(f"app.bsky.feed.{name}" for name in views),
        "app.bsky.actor.getProfile",
        "app.bsky.actor.getProfiles",
        "app.bsky.notification.registerPush",
        "app.bsky.notification.unregisterPush",
        "com.example.thing.get",
    }
    assert taken[Allows.ENDED] == {SERVER + "deleteSession"}


async def test_every_credential_in_every_state_at_every_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = Findings()
    async with town_in(tmp_path) as town:
        for nsid, access in sorted(town.methods.items()):
            await _ask_as_callers(town, nsid, access, findings)
            await town.put_back()
        callers = findings.cells
        # Deleting comes last: nothing is left to speak of.
        for nsid, access in sorted(
            town.methods.items(), key=lambda item: (item[0].endswith(".deleteAccount"), item[0])
        ):
            await _ask_about_subjects(town, nsid, access, findings)
    with capsys.disabled():
        print(
            f"\n{findings.cells} cells: {callers} of callers, {findings.cells - callers} of others"
        )
    assert not findings.wrong, f"{len(findings.wrong)} cells:\n" + "\n".join(findings.wrong)


async def _ask_as_callers(town: Town, nsid: str, access: Access, findings: Findings) -> None:
    request = {**REQUESTS, **ELSEWHERE}.get(nsid)
    if request is None:
        findings.wrong.append(f"{nsid}: no request in access_requests.py")
        return
    gate = asyncio.Semaphore(AT_ONCE)

    async def cell(credential: Credential, state: State) -> None:
        account = town.callers[state]
        sent = adapted(nsid, request, credential)
        named = account.named if request.of_caller else town.open.named
        answer = request.answer
        is_order = access.auth in (Auth.ADMIN, Auth.MODERATOR)
        if is_order and access.subject is not None and access.subject.unknown is not None:
            named, answer = Named(NOBODY), (400, access.subject.unknown)
        async with gate:
            header = town.header(nsid, credential, account)
            got = await town.ask(nsid, sent, named, header)
        expected = refusal(access, credential, state)
        findings.note(f"{nsid}, {credential}, {state}", got, tuple(expected or answer))

    await asyncio.gather(*(cell(credential, state) for state in State for credential in Credential))


async def _ask_about_subjects(town: Town, nsid: str, access: Access, findings: Findings) -> None:
    subject, request = access.subject, REQUESTS.get(nsid)
    if subject is None or request is None:
        return
    is_order = access.auth in (Auth.ADMIN, Auth.MODERATOR)
    accounts = town.subjects if is_order else town.callers
    for state in State:
        account = accounts[state]
        for asker in Asker:
            if asker is Asker.OWNER and (state in GONE or is_order):
                continue
            caller = account if asker is Asker.OWNER else town.callers[State.ACTIVE]
            credential = {
                Asker.NOBODY: Credential.NONE,
                Asker.OWNER: Credential.NARROW if state in STOPPED else Credential.ACCESS,
                Asker.OTHER: Credential.ACCESS,
                Asker.ADMIN: Credential.ADMIN,
                Asker.MODERATOR: Credential.MODERATOR,
            }[asker]
            if asker is Asker.OTHER and state is State.ACTIVE:
                caller = town.callers[State.DEACTIVATED]
            header = town.header(nsid, credential, caller)
            got = await town.ask(nsid, request, account.named, header)
            expected: Refusal | tuple[int, str] | None = subject_refusal(access, asker, state)
            if expected is None and subject.asks_elsewhere and state in GONE:
                expected = request.answer if asker is Asker.NOBODY else (400, "InvalidRequest")
            findings.note(f"{nsid} of {state}, {asker}", got, tuple(expected or request.answer))


def test_the_narrow_token_is_what_its_name_says() -> None:
    """A token says its scope: the matrix would prove nothing with another one."""
    narrow = SessionTokens(secrets=["x" * 8], service_did="did:web:x").issue_access(
        did=STRANGER, scope=Scope.TAKENDOWN, session_id="s", issued_s=1, expires_s=2
    )
    assert decode_jwt(narrow).claims["scope"] == "com.atproto.takendown"
    assert set(OF_ACCOUNTS) >= {Credential.NARROW, *SERVICES}
