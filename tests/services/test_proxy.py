"""The service proxy: whom to ask, who may, what goes out and what comes back.

Spec: XRPC-60, XRPC-61, XRPC-62, XRPC-63, XRPC-64, XRPC-65, XRPC-66, XRPC-67, XRPC-68.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from multidict import CIMultiDict

from pds.errors import BadAnswer, NotResolvable, RemoteError, RequestError, Unreachable
from pds.protocol.diddoc import DidDocument, parse_did_document
from pds.protocol.syntax import Did
from pds.services.principal import ADMIN, Principal, PrincipalKind, Scope
from pds.services.proxy import (
    CREATE_REPORT,
    NO_APPVIEW,
    NoService,
    ProxiedCall,
    Proxy,
    ProxySettings,
    ServiceAddress,
    TokenFor,
)
from pds.services.proxy_answers import UpstreamError
from pds.store.accounts import AccountStatus

ALICE = Did("did:plc:ab2cd3ef4gh5ij6kl7mn2opq")
FEED = "did:web:feed.example"
APPVIEW = ServiceAddress("did:web:appview.example", "https://appview.example")
MODERATION = ServiceAddress("did:web:mod.example", "https://mod.example")
REPORTS = ServiceAddress("did:web:reports.example", "https://reports.example")
REFUSED = "Upstream service refused the request"
TIMELINE = "app.bsky.feed.getTimeline"


class FakeAnswer:
    def __init__(
        self, status: int, headers: Mapping[str, str], chunks: list[bytes | RemoteError]
    ) -> None:
        self.status = status
        self.headers = CIMultiDict(headers)
        self.chunks = chunks

    async def iter_chunks(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            if isinstance(chunk, RemoteError):
                raise chunk
            yield chunk

    async def read(self, max_bytes: int | None = None) -> bytes:
        body = b"".join([chunk async for chunk in self.iter_chunks()])
        if max_bytes is not None and len(body) > max_bytes:
            raise BadAnswer("too large")
        return body


class FakeUpstream:
    """Answers every request alike and notes it."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.error: RemoteError | None = None
        self.answer = FakeAnswer(200, {"Content-Type": "application/json"}, [b'{"a":', b"1}"])
        self.open_answers = 0

    @asynccontextmanager
    async def request(self, method: str, url: str, **options: Any) -> AsyncIterator[FakeAnswer]:
        body = options.pop("body")
        sent = None if body is None else b"".join([chunk async for chunk in body])
        self.requests.append({"method": method, "url": url, "body": sent, **options})
        if self.error is not None:
            raise self.error
        self.open_answers += 1
        try:
            yield self.answer
        finally:
            self.open_answers -= 1


class FakeDocuments:
    def __init__(self) -> None:
        self.services: list[dict[str, str]] = []
        self.error: RemoteError | None = None
        self.asked = 0

    async def resolve_did(self, did: Did) -> DidDocument:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return parse_did_document({"id": did, "service": self.services}, did)


class FakeTokens:
    async def mint(self, did: Did, *, aud: str, lxm: str) -> str:
        return f"{did}|{aud}|{lxm}"


class FakeChoices:
    """Every account has chosen the same."""

    def __init__(self) -> None:
        self.choice: str | None = None

    async def get(self, aid: int) -> str | None:
        assert aid == 1
        return self.choice


class Town:
    """A proxy between fakes."""

    def __init__(self, **settings: Any) -> None:
        defaults = {"appview": APPVIEW, "moderation": MODERATION, "reports": REPORTS}
        self.trusted, self.guarded = FakeUpstream(), FakeUpstream()
        self.choices = FakeChoices()
        self.documents = FakeDocuments()
        self.documents.services = [
            {
                "id": "#bsky_fg",
                "type": "BskyFeedGenerator",
                "serviceEndpoint": "https://feed.example",
            },
            {"id": f"{FEED}#full", "type": "X", "serviceEndpoint": "https://feed.example:8443/"},
            {"id": "#path", "type": "X", "serviceEndpoint": "https://feed.example/path"},
            {"id": "#ftp", "type": "X", "serviceEndpoint": "ftp://feed.example"},
        ]
        self.proxy = Proxy(
            trusted=self.trusted,
            guarded=self.guarded,
            documents=self.documents,
            tokens=FakeTokens(),
            settings=ProxySettings(**(defaults | settings)),
            choices=self.choices,
        )

    async def call(
        self,
        nsid: str = TIMELINE,
        *,
        method: str = "GET",
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: list[bytes] | None = None,
        principal: Principal | None = None,
        is_read_here: bool = False,
        **options: Any,
    ) -> tuple[int, Mapping[str, str], bytes]:
        async def chunks() -> AsyncIterator[bytes]:
            for chunk in body or []:
                yield chunk

        call = ProxiedCall(
            nsid=nsid,
            method=method,
            query=query,
            headers=CIMultiDict(headers or {}),
            body=None if body is None else chunks(),
            is_read_here=is_read_here,
        )
        async with self.proxy.forward(principal or session(), call, **options) as answer:
            content = b"".join([chunk async for chunk in await answer.stream()])
            return answer.status, answer.headers, content

    async def refused(self, *args: Any, **options: Any) -> tuple[int, str]:
        with pytest.raises(RequestError) as refusal:
            await self.call(*args, **options)
        assert self.trusted.open_answers == self.guarded.open_answers == 0
        return refusal.value.status, refusal.value.name


def session(scope: Scope = Scope.ACCESS, status: AccountStatus = AccountStatus.ACTIVE) -> Principal:
    return Principal(PrincipalKind.SESSION, did=ALICE, aid=1, scope=scope, status=status)


@pytest.fixture
def town() -> Town:
    return Town()


# --- Whom to ask (XRPC-61) --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nsid", "host"),
    [
        (TIMELINE, "appview"),
        ("com.example.anything", "appview"),
        ("tools.ozone.moderation.getRepo", "mod"),
        (CREATE_REPORT, "reports"),
    ],
)
async def test_without_a_header_the_settings_decide(town: Town, nsid: str, host: str) -> None:
    await town.call(nsid)
    assert town.trusted.requests[0]["url"] == f"https://{host}.example/xrpc/{nsid}"
    assert town.guarded.requests == []
    assert town.documents.asked == 0


async def test_reports_go_to_the_moderation_service_when_none_is_named() -> None:
    town = Town(reports=None)
    await town.call(CREATE_REPORT)
    assert town.trusted.requests[0]["url"].startswith("https://mod.example/")


async def test_without_any_target_the_call_is_refused() -> None:
    town = Town(appview=None)
    assert await town.refused() == (400, "InvalidRequest")


@pytest.mark.parametrize("service_id", ["bsky_fg", "full"])
async def test_a_header_names_a_service_of_a_did(town: Town, service_id: str) -> None:
    await town.call(headers={"atproto-proxy": f"{FEED}#{service_id}"})
    assert town.trusted.requests == []
    port = ":8443" if service_id == "full" else ""
    assert town.guarded.requests[0]["url"] == f"https://feed.example{port}/xrpc/{TIMELINE}"


async def test_a_header_that_names_a_configured_service_needs_no_look_up(town: Town) -> None:
    await town.call(headers={"atproto-proxy": f"{APPVIEW.did}#bsky_appview"})
    await town.call(headers={"atproto-proxy": f"{MODERATION.did}#atproto_labeler"})
    await town.call(headers={"atproto-proxy": f"{REPORTS.did}#atproto_labeler"})
    assert [request["url"].split("/")[2] for request in town.trusted.requests] == [
        "appview.example",
        "mod.example",
        "reports.example",
    ]
    assert town.documents.asked == 0
    assert await town.refused(headers={"atproto-proxy": f"{APPVIEW.did}#other"}) == (
        400,
        "InvalidRequest",
    )


@pytest.mark.parametrize(
    "header",
    [
        *("x", FEED, f"{FEED}#", "#bsky_fg", f"{FEED}#a#b", f"{FEED} #bsky_fg"),
        *(f"{FEED}# bsky_fg", "did:#bsky_fg", "feed.example#bsky_fg"),
        *(f"{FEED}#missing", f"{FEED}#path", f"{FEED}#ftp"),
    ],
)
async def test_a_header_that_names_nobody_is_refused(town: Town, header: str) -> None:
    assert await town.refused(headers={"atproto-proxy": header}) == (400, "InvalidRequest")
    assert town.guarded.requests == town.trusted.requests == []


async def test_a_did_that_does_not_exist_is_a_400_and_one_not_found_out_a_502(town: Town) -> None:
    header = {"atproto-proxy": f"{FEED}#bsky_fg"}
    town.documents.error = NotResolvable("no such did")
    assert await town.refused(headers=header) == (400, "InvalidRequest")
    town.documents.error = Unreachable("timeout")
    assert await town.refused(headers=header) == (502, "UpstreamFailure")


async def test_an_account_may_have_chosen_another_appview(town: Town) -> None:
    town.choices.choice = f"{FEED}#bsky_fg"
    await town.call()
    assert town.trusted.requests == []
    assert town.guarded.requests[0]["url"].startswith("https://feed.example/")
    await town.call(headers={"atproto-proxy": f"{APPVIEW.did}#bsky_appview"})
    await town.call("tools.ozone.moderation.getRepo")
    await town.call(CREATE_REPORT)
    assert len(town.guarded.requests) == 1
    town.choices.choice = f"{APPVIEW.did}#bsky_appview"
    await town.call()
    assert len(town.trusted.requests) == 4
    assert len(town.guarded.requests) == 1


async def test_a_choice_that_cannot_be_found_any_more_is_an_outage(town: Town) -> None:
    for choice in (f"{FEED}#missing", f"{FEED}#path"):
        town.choices.choice = choice
        with pytest.raises(UpstreamError) as outage:
            await town.call()
        assert (outage.value.status, outage.value.is_outage) == (502, True)
    town.documents.error = Unreachable("timeout")
    assert await town.refused() == (502, "UpstreamFailure")
    town.choices.choice = NO_APPVIEW
    with pytest.raises(NoService):
        await town.call()
    assert town.trusted.requests == town.guarded.requests == []


# --- Who may (XRPC-62, XRPC-63, XRPC-64) ------------------------------------------------------


@pytest.mark.parametrize(
    "nsid",
    [
        "com.atproto.server.updateEmail",
        "com.atproto.identity.signPlcOperation",
        "COM.atproto.Server.GetSession",
        "com.atproto.admin.sendEmail",
    ],
)
async def test_protected_methods_are_never_passed_on(town: Town, nsid: str) -> None:
    assert await town.refused(nsid) == (400, "InvalidToken")
    assert town.trusted.requests == []


@pytest.mark.parametrize(
    "nsid",
    ["chat.bsky.convo.getLog", "chat.bsky.future.method", "com.atproto.server.createAccount"],
)
async def test_privileged_methods_need_a_privileged_session(town: Town, nsid: str) -> None:
    assert await town.refused(nsid, principal=session(Scope.APP_PASS)) == (400, "InvalidToken")
    assert town.trusted.requests == []
    await town.call(nsid, principal=session(Scope.APP_PASS_PRIVILEGED))
    await town.call(nsid)
    assert len(town.trusted.requests) == 2


async def test_accounts_that_are_not_active_may_only_report(town: Town) -> None:
    deactivated = session(status=AccountStatus.DEACTIVATED)
    suspended = session(status=AccountStatus.SUSPENDED)
    takendown = session(Scope.TAKENDOWN, AccountStatus.TAKENDOWN)
    assert await town.refused(principal=deactivated) == (401, "AccountDeactivated")
    assert await town.refused(principal=suspended) == (401, "AccountTakedown")
    assert await town.refused(principal=takendown) == (401, "AccountTakedown")
    for principal in (deactivated, suspended, takendown):
        await town.call(CREATE_REPORT, method="POST", body=[b"{}"], principal=principal)
    assert len(town.trusted.requests) == 3


async def test_only_sessions_of_accounts_are_passed_on(town: Town) -> None:
    service = Principal(PrincipalKind.SERVICE, did=ALICE, lxm=TIMELINE)
    for principal in (ADMIN, service):
        assert await town.refused(principal=principal) == (401, "AuthMissing")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_other_verbs_are_not_passed_on(town: Town, method: str) -> None:
    assert (await town.refused(method=method))[0] == 501


# --- What goes out (XRPC-65, XRPC-66) ---------------------------------------------------------


async def test_a_fresh_token_goes_out_and_nothing_of_the_users_own(town: Town) -> None:
    await town.call(
        query="limit=5&cursor=a%20b",
        headers={
            "Authorization": "Bearer secret",
            "DPoP": "proof",
            "Cookie": "a=b",
            "Host": "pds.example",
            "X-Forwarded-For": "10.0.0.1",
            "User-Agent": "browser",
            "Accept-Language": "de",
            "Atproto-Accept-Labelers": "did:web:l",
            "X-Bsky-Topics": "t",
            "Content-Type": "text/plain",
        },
    )
    request = town.trusted.requests[0]
    assert request["url"] == f"https://appview.example/xrpc/{TIMELINE}?limit=5&cursor=a%20b"
    assert request["headers"] == {
        "accept-language": "de",
        "atproto-accept-labelers": "did:web:l",
        "x-bsky-topics": "t",
        "accept-encoding": "identity",
        "authorization": f"Bearer {ALICE}|{APPVIEW.did}|{TIMELINE}",
    }
    assert request["body"] is None
    assert request["max_bytes"] == 10 * 1024 * 1024
    assert request["headers_timeout_s"] == 10


async def test_a_post_carries_its_body_and_what_describes_it(town: Town) -> None:
    headers = {
        "Content-Type": "application/json",
        "Content-Encoding": "gzip",
        "Content-Length": "6",
        "Accept-Encoding": "gzip, br",
    }
    await town.call(method="POST", headers=headers, body=[b"abc", b"def"])
    request = town.trusted.requests[0]
    assert (request["method"], request["body"]) == ("POST", b"abcdef")
    assert {name: request["headers"][name.lower()] for name in headers} == headers


@pytest.mark.parametrize(
    ("full_audience", "audience"),
    [
        (frozenset(), APPVIEW.did),
        (frozenset({"*"}), f"{APPVIEW.did}#bsky_appview"),
        (frozenset({f"{APPVIEW.did}#bsky_appview"}), f"{APPVIEW.did}#bsky_appview"),
        (frozenset({f"{FEED}#bsky_fg"}), APPVIEW.did),
    ],
)
async def test_the_audience_is_the_bare_did_unless_told_otherwise(
    full_audience: frozenset[str], audience: str
) -> None:
    town = Town(full_audience=full_audience)
    await town.call()
    token = town.trusted.requests[0]["headers"]["authorization"]
    assert token == f"Bearer {ALICE}|{audience}|{TIMELINE}"


async def test_headers_for_the_service_behind_us_are_passed_on(town: Town) -> None:
    await town.call(headers={"X-Atproto-Bsky-Topics": "a", "X-Atproto": "b", "X-Other": "c"})
    sent = town.trusted.requests[0]["headers"]
    assert sent["x-atproto-bsky-topics"] == "a"
    assert not {"x-atproto", "x-other"} & set(sent)


@pytest.mark.parametrize(
    ("accepted", "asked_for"),
    [
        (None, "identity"),
        ("br, zstd", "identity"),
        ("br, gzip;q=0.5", "gzip"),
        ("GZIP", "gzip"),
        ("gzip; q=0", "identity"),
        ("*", "identity"),
    ],
)
async def test_answers_that_are_read_here_come_in_codings_that_we_know(
    town: Town, accepted: str | None, asked_for: str
) -> None:
    headers = {} if accepted is None else {"Accept-Encoding": accepted}
    await town.call(headers=headers, is_read_here=True)
    assert town.trusted.requests[0]["headers"]["accept-encoding"] == asked_for


async def test_a_token_can_be_for_somebody_behind_the_target(town: Town) -> None:
    await town.call(token_for=TokenFor("did:web:behind.example", "a.b.c"))
    sent = town.trusted.requests[0]["headers"]
    assert sent["authorization"] == f"Bearer {ALICE}|did:web:behind.example|a.b.c"


async def test_questions_of_our_own_carry_a_token_only_for_an_asker(town: Town) -> None:
    target = await town.proxy.find_target(TIMELINE, None)
    assert await town.proxy.ask(target, "a.b.c", "x=1") == b'{"a":1}'
    await town.proxy.ask(target, "a.b.c", "", asker=ALICE)
    first, second = town.trusted.requests
    assert first["url"] == "https://appview.example/xrpc/a.b.c?x=1"
    assert "authorization" not in first["headers"]
    assert second["headers"]["authorization"] == f"Bearer {ALICE}|{APPVIEW.did}|a.b.c"
    town.trusted.answer = FakeAnswer(200, {}, [BadAnswer("cut")])
    with pytest.raises(UpstreamError):
        await town.proxy.ask(target, "a.b.c", "")


# --- What comes back (XRPC-67) ----------------------------------------------------------------


async def test_answers_come_through_with_the_headers_that_matter(town: Town) -> None:
    kept = {
        "content-type": "application/json",
        "content-language": "de",
        "content-encoding": "gzip",
        "content-length": "7",
        "atproto-repo-rev": "3ke6kg42cm227",
        "atproto-content-labelers": "did:web:l",
        "retry-after": "5",
    }
    dropped = {"Set-Cookie": "a=b", "Access-Control-Allow-Origin": "x", "Location": "/"}
    town.trusted.answer = FakeAnswer(201, {**kept, **dropped}, [b"a", b"", b"bc"])
    assert await town.call() == (201, kept, b"abc")
    assert town.trusted.open_answers == 0


async def test_an_empty_answer_comes_through(town: Town) -> None:
    town.trusted.answer = FakeAnswer(200, {}, [])
    assert await town.call(method="POST", body=[]) == (200, {}, b"")


async def test_head_has_headers_and_no_body(town: Town) -> None:
    town.trusted.answer = FakeAnswer(200, {"Content-Length": "7"}, [Unreachable("never read")])
    assert await town.call(method="HEAD") == (200, {"content-length": "7"}, b"")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error":"NotFound","message":"no post","x":1}', (400, "NotFound", "no post")),
        (400, b'{"message":"no post"}', (400, "InvalidRequest", "no post")),
        (404, b"<html>", (404, "InvalidRequest", REFUSED)),
        (400, b'{"error":5,"message":[]}', (400, "InvalidRequest", REFUSED)),
        (400, b'["error"]', (400, "InvalidRequest", REFUSED)),
        (400, b'{"error":"' + b"x" * 200 + b'","message":"m"}', (400, "InvalidRequest", "m")),
        (400, b"x" * 100_000, (400, "InvalidRequest", REFUSED)),
        (401, b'{"error":"BadJwt","message":"m"}', (401, "BadJwt", "m")),
        (500, b'{"error":"InternalServerError","message":"m"}', (502, "UpstreamFailure", "m")),
        (500, b"trace", (502, "UpstreamFailure", "Upstream service failed")),
        (503, b"", (503, "UpstreamFailure", "Upstream service failed")),
        (504, b"", (504, "UpstreamFailure", "Upstream service failed")),
    ],
)  # fmt: skip
async def test_error_answers_are_worded_anew(
    town: Town, status: int, body: bytes, expected: tuple[int, str, str]
) -> None:
    town.trusted.answer = FakeAnswer(status, {"Content-Type": "application/json"}, [body])
    with pytest.raises(RequestError) as refusal:
        await town.call()
    error = refusal.value
    assert (error.status, error.name, error.message) == expected
    assert error.headers == {}


async def test_retry_after_of_an_error_comes_through(town: Town) -> None:
    town.trusted.answer = FakeAnswer(429, {"Retry-After": "17"}, [b'{"error":"RateLimitExceeded"}'])
    with pytest.raises(RequestError) as refusal:
        await town.call()
    assert (refusal.value.status, refusal.value.name) == (429, "RateLimitExceeded")
    assert refusal.value.headers == {"Retry-After": "17"}


async def test_no_answer_a_redirect_or_a_broken_one_is_a_502(town: Town) -> None:
    for error in (Unreachable("timeout"), NotResolvable("private address"), BadAnswer("not HTTP")):
        town.trusted.error = error
        assert await town.refused() == (502, "UpstreamFailure")
    town.trusted.error = None
    for answer in (
        FakeAnswer(302, {"Location": "http://127.0.0.1/"}, []),
        FakeAnswer(304, {}, []),
        FakeAnswer(200, {}, [BadAnswer("too large")]),
        FakeAnswer(500, {}, [Unreachable("broke off")]),
    ):
        town.trusted.answer = answer
        assert await town.refused() == (502, "UpstreamFailure")


async def test_an_answer_that_breaks_off_later_is_not_taken_for_whole(town: Town) -> None:
    town.trusted.answer = FakeAnswer(200, {}, [b"half", Unreachable("broke off")])
    with pytest.raises(Unreachable):
        await town.call()
    assert town.trusted.open_answers == 0


@pytest.mark.parametrize(
    ("status", "is_outage"),
    [(302, True), (400, False), (404, False), (429, False), (500, True), (501, False), (503, True)],
)
async def test_an_outage_is_told_from_a_refusal(town: Town, status: int, is_outage: bool) -> None:
    town.trusted.answer = FakeAnswer(status, {"Atproto-Repo-Rev": "3ke6kg42cm227"}, [b"{}"])
    with pytest.raises(UpstreamError) as error:
        await town.call()
    assert error.value.is_outage is is_outage
    assert error.value.repo_rev == (None if status == 302 else "3ke6kg42cm227")
