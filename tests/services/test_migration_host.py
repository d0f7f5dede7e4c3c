"""What a move asks of other hosts, relays and AppViews, against servers that answer as told.

Spec: (XRPC-27, ACC-45, ACC-56)
"""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from pds.errors import BadAnswer, Unreachable
from pds.net.http import GuardedClient, HttpSettings, TrustedClient
from pds.net.http_errors import ForbiddenDestination
from pds.net.xrpc_client import XrpcRejected
from pds.protocol.cid import Cid
from pds.protocol.syntax import Did
from pds.services.migration_drive import from_remote
from pds.services.migration_host import RemoteHost, retry_after_s
from pds.services.migration_problems import Code, MoveProblem
from pds.services.migration_session import Tokens
from pds.services.migration_watch import Watch
from tests.net.servers import serving

DID = Did("did:plc:ewvi7nxzyoun6zhxrhs64oiz")
OLD, NEW = Tokens("old-access", "old-refresh"), Tokens("new-access", "new-refresh")


class Answers:
    """A host whose answers are set by method: JSON, or a status with JSON."""

    def __init__(self) -> None:
        self.by_method: dict[str, Any] = {}
        self.asked: list[tuple[str, str]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        nsid = request.path.removeprefix("/xrpc/")
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.asked.append((nsid.rpartition(".")[2], token))
        content = self.by_method[nsid]
        if callable(content):
            content = content(token)
        status, value = content if isinstance(content, tuple) else (200, content)
        return web.json_response(value, status=status, headers={"Retry-After": "7"})


@asynccontextmanager
async def answering(**by_method: Any) -> AsyncIterator[tuple[Answers, TrustedClient]]:
    answers = Answers()
    answers.by_method = {name.replace("_", "."): value for name, value in by_method.items()}
    settings = HttpSettings.trusted(user_agent="test", allow_private=True)
    async with serving(answers.answer) as port, TrustedClient(settings) as http:
        answers.url = f"http://127.0.0.1:{port}"
        yield answers, http


async def test_a_latest_commit_is_a_cid_and_a_rev_and_nothing_else() -> None:
    """A rev is shown to people, and newer ones are told by comparing."""
    good = {"cid": str(Cid.of_data(b"")), "rev": "3kaaaaaaaaaaa"}
    latest: dict[str, Any] = {}
    async with answering(com_atproto_sync_getLatestCommit=lambda _token: latest) as (host, http):
        remote = RemoteHost(http, host.url)
        latest |= good
        assert await remote.get_latest(DID) == (good["cid"], good["rev"])
        for wrong in ({"rev": "\x1b[2J"}, {"rev": "3"}, {"rev": None}, {"cid": "x"}, {"cid": 7}):
            latest |= good | wrong
            with pytest.raises(BadAnswer, match="no latest commit"):
                await remote.get_latest(DID)


async def test_where_a_host_redirects_to_is_judged_as_a_strangers_address() -> None:
    """A neighbour that the operator named may be asked; what it points to is not its to choose."""
    seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.path)
        if request.path == "/inside":
            return web.Response(body=b"secret")
        return web.Response(status=302, headers={"Location": "/inside"})

    guarded = HttpSettings.guarded(user_agent="test")
    trusted = HttpSettings.trusted(user_agent="test", allow_private=True)
    async with (
        serving(answer) as port,
        TrustedClient(trusted) as http,
        GuardedClient(guarded) as strangers,
    ):
        host = RemoteHost(http, f"http://127.0.0.1:{port}", elsewhere=strangers)
        with pytest.raises(ForbiddenDestination):
            async with host.open_blob(DID, "bafkrei", max_bytes=100):
                raise AssertionError("it was followed")
    assert seen == ["/xrpc/com.atproto.sync.getBlob"]


def needs(token: str) -> Any:
    """Answer only a token; others have expired."""
    expired = (400, {"error": "ExpiredToken", "message": "Token has expired"})
    return lambda given: {"ok": True} if given == token else expired


async def test_an_expired_session_is_renewed_and_kept_before_it_is_used() -> None:
    kept: list[Tokens] = []

    async def keep(tokens: Tokens) -> None:
        kept.append(tokens)

    async with answering(
        com_example_call=needs(NEW.access),
        com_atproto_server_refreshSession={"accessJwt": NEW.access, "refreshJwt": NEW.refresh},
    ) as (answers, http):
        host = RemoteHost(http, answers.url, tokens=OLD, on_tokens=keep)
        assert await host.query_as_owner("com.example.call") == {"ok": True}
        assert await host.procedure("com.example.call", {}) == {"ok": True}
        assert answers.asked == [
            ("call", OLD.access),
            ("refreshSession", OLD.refresh),
            ("call", NEW.access),
            ("call", NEW.access),
        ]
    assert kept == [NEW]


async def test_a_session_that_has_ended_asks_for_a_login() -> None:
    ended = (400, {"error": "ExpiredToken", "message": "Token has been revoked"})
    async with answering(
        com_example_call=needs("none"), com_atproto_server_refreshSession=ended
    ) as (answers, http):
        host = RemoteHost(http, answers.url, tokens=OLD)
        with pytest.raises(MoveProblem) as caught:
            await host.query_as_owner("com.example.call")
        assert caught.value.code is Code.LOGIN_NEEDED
        with pytest.raises(MoveProblem):
            await RemoteHost(http, answers.url).query_as_owner("com.example.call")


def session(**more: Any) -> dict[str, Any]:
    return {"did": DID, "accessJwt": "a", "refreshJwt": "r", "email": "a@example.test"} | more


def app_password_token() -> str:
    parts = ({"alg": "HS256", "typ": "at+jwt"}, {"scope": "com.atproto.appPass"})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts]
    return ".".join([*(part.rstrip("=") for part in encoded), "c2ln"])


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((401, {"error": "AuthenticationRequired", "message": "no"}), Code.LOGIN_NEEDED),
        ((401, {"error": "AuthFactorTokenRequired", "message": ""}), Code.AUTH_FACTOR_NEEDED),
        (session(accessJwt=app_password_token()), Code.LOGIN_NEEDED),
    ],
)
async def test_a_refused_login_says_what_is_missing(answer: Any, code: Code) -> None:
    async with answering(com_atproto_server_createSession=answer) as (answers, http):
        host = RemoteHost(http, answers.url)
        with pytest.raises(MoveProblem) as caught:
            await host.log_in(DID, "password")
        assert caught.value.code is code
        assert not host.has_session


async def test_a_login_is_of_the_account_that_was_asked_for() -> None:
    async with answering(com_atproto_server_createSession=session()) as (answers, http):
        host = RemoteHost(http, answers.url)
        assert (await host.log_in(DID, "password")).email == "a@example.test"
        answers.by_method["com.atproto.server.createSession"] = session(did="did:plc:other")
        with pytest.raises(BadAnswer):
            await host.log_in(DID, "password")


@pytest.mark.parametrize("token", ["a\r\nHost: other", "a\n", "\0", "", "x" * 20_000, "t\u00f6k"])
async def test_tokens_that_fit_in_no_header_are_no_session(token: str) -> None:
    async with answering(
        com_atproto_server_createSession=session(accessJwt=token),
        com_atproto_server_refreshSession=session(refreshJwt=token),
        com_atproto_server_getSession=(400, {"error": "ExpiredToken"}),
    ) as (answers, http):
        host = RemoteHost(http, answers.url)
        with pytest.raises(BadAnswer):
            await host.log_in(DID, "password")
        assert not host.has_session
        host = RemoteHost(http, answers.url, tokens=OLD)
        with pytest.raises(BadAnswer):
            await host.check_session()


async def test_a_list_without_end_ends() -> None:
    async with answering(com_atproto_sync_listBlobs={"cids": ["a"], "cursor": "same"}) as (
        answers,
        http,
    ):
        host = RemoteHost(http, answers.url)
        assert [cid async for cid in host.list_blobs(DID)] == ["a", "a"]
        answers.by_method["com.atproto.sync.listBlobs"] = {"cids": [], "cursor": "next"}
        assert [cid async for cid in host.list_blobs(DID)] == []


async def test_faults_are_the_other_hosts_and_waits_are_kept() -> None:
    async with answering(com_example_call=(503, {})) as (answers, http):
        host = RemoteHost(http, answers.url)
        with pytest.raises(Unreachable) as caught:
            await host.query("com.example.call")
        assert retry_after_s(caught.value) == 7.0
        problem = from_remote(caught.value, host.name)
        assert (problem.code, problem.is_passing) == (Code.OTHER_HOST_UNREACHABLE, True)
        assert problem.after_s == 7.0
        answers.by_method["com.example.call"] = (400, {"error": "No", "message": "never"})
        with pytest.raises(XrpcRejected) as refused:
            await host.query("com.example.call")
        problem = from_remote(refused.value, host.name)
        assert (problem.code, problem.is_passing) == (Code.OTHER_HOST_REFUSED, False)
        answers.by_method["com.example.call"] = ["not", "an", "object"]
        with pytest.raises(BadAnswer) as bad:
            await host.query("com.example.call")
        assert from_remote(bad.value, host.name).code is Code.OTHER_HOST_FAULTY


async def test_relays_and_appview_are_asked_until_they_see_the_account() -> None:
    announced = 0
    statuses = [
        {"did": DID, "active": False, "status": "deactivated"},
        {"did": DID, "active": True, "rev": "3aaaaaaaaaaaa"},
        {"did": DID, "active": True},
    ]
    profiles = [(400, {"error": "NotFound", "message": ""}), {"did": DID, "handle": "a.test"}]

    def next_of(answers: list[Any]) -> Any:
        return lambda _: answers.pop(0) if len(answers) > 1 else answers[0]

    async def announce() -> None:
        nonlocal announced
        announced += 1

    async def no_wait(_: float) -> None:
        return None

    async with answering(
        com_atproto_sync_getRepoStatus=next_of(statuses),
        com_atproto_sync_getLatestCommit={"cid": "c", "rev": "3bbbbbbbbbbbb"},
        app_bsky_actor_getProfile=next_of(profiles),
    ) as (answers, http):
        watch = Watch(
            http=http,
            relays=[answers.url],
            appview_url=answers.url,
            announce=announce,
            sleep=no_wait,
        )
        sights = await watch.look(DID, rev="3bbbbbbbbbbbb", handle="a.test")
        assert [(sight.kind, sight.is_seen) for sight in sights] == [
            ("relay", True),
            ("appview", True),
        ]
        assert announced == 1
        assert [name for name, _ in answers.asked].count("getRepoStatus") == 3
        answers.by_method["com.atproto.sync.getRepoStatus"] = statuses[0] | {"active": False}
        answers.by_method["app.bsky.actor.getProfile"] = {"did": DID, "handle": "handle.invalid"}
        sights = await watch.look(DID, rev=None, handle="a.test")
        assert [sight.is_seen for sight in sights] == [False, False]
        assert "handle.invalid" in sights[1].detail
        assert announced == 1
