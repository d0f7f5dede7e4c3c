"""The client document and the address for browsers that come back: answers, headers, pages.

Spec: (OAUTH-10, OAUTH-11, OAUTH-47)
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from pds.errors import RequestError, Unavailable, Unreachable
from pds.web import oauth_client
from pds.web.pages import Pages
from pds.web.router import WebRouter
from pds.xrpc.listener import Listener, ListenerSettings

MOVE = {
    "did": "did:plc:ewvi7nxzyoun6zhxrhs64oiz",
    "oldHandle": "alice.old.example",
    "otherHost": "https://old.example",
    "status": "running",
}
PATH = "/oauth-client/callback?state=1.x&code=secret-code"


class FakeMigration:
    """Answers as it is told."""

    def __init__(self) -> None:
        self.document: dict[str, Any] | None = {"client_id": "https://pds.example.com/c.json"}
        self.outcome: Any = MOVE
        self.queries: list[str] = []
        self.names: list[str] = []
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.finished = asyncio.Event()

    def client_metadata(self, name: str) -> dict[str, Any] | None:
        self.names.append(name)
        return self.document

    async def finish_sign_in(self, query: str) -> dict[str, Any]:
        self.queries.append(query)
        await self.goes_on.wait()
        self.finished.set()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return dict(self.outcome)


@pytest.fixture
def migration() -> FakeMigration:
    return FakeMigration()


@pytest.fixture
async def http(migration: FakeMigration) -> AsyncIterator[aiohttp.ClientSession]:
    router = WebRouter()
    moves: Any = migration
    oauth_client.add_routes(router, migration=moves, pages=Pages())
    listener = Listener(router.handle, ListenerSettings())
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = await asyncio.get_running_loop().create_server(listener, sock=sock)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{sock.getsockname()[1]}") as session:
        yield session
    server.close()
    await listener.shutdown(1)


async def test_other_servers_read_the_document(
    http: aiohttp.ClientSession, migration: FakeMigration
) -> None:
    async with http.get("/oauth-client-metadata.json") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert await answer.json() == migration.document
    migration.document = None
    headers = {"Host": "former.example.com"}
    async with http.get("/oauth-client-metadata.json", headers=headers) as answer:
        assert answer.status == 404
    assert migration.names[-1] == "former.example.com"


async def test_a_browser_that_comes_back_is_told_how_it_goes(
    http: aiohttp.ClientSession, migration: FakeMigration
) -> None:
    async with http.get(PATH) as answer:
        text = await answer.text()
        assert (answer.status, answer.content_type) == (200, "text/html")
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert migration.queries == ["state=1.x&code=secret-code"]
    assert "alice.old.example" in text
    assert "goes on by itself" in text
    assert "secret-code" not in text
    migration.outcome = MOVE | {"status": "failed", "problem": {"message": "A <b>fault</b>"}}
    async with http.get(PATH) as answer:
        text = await answer.text()
    assert "has stopped: A &lt;b&gt;fault&lt;/b&gt;." in text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestError("login_needed", "It was <i>declined"), 400),
        (RequestError("busy", "Another works on it"), 409),
        (Unreachable("the directory is away"), 502),
        (Unavailable("disk on fire at /secret/path"), 503),
    ],
)
async def test_each_failure_has_a_page(
    http: aiohttp.ClientSession, migration: FakeMigration, error: Exception, status: int
) -> None:
    migration.outcome = error
    async with http.get(PATH) as answer:
        text = await answer.text()
        assert (answer.status, "The move did not go on" in text) == (status, True)
    assert "<i>" not in text
    assert "/secret/path" not in text


async def test_who_looks_at_the_page_again_is_told_no_untruth(
    http: aiohttp.ClientSession, migration: FakeMigration
) -> None:
    """The move may have gone on, or be over, since."""
    migration.outcome = RequestError("UnknownSignIn", "Nothing here waits for this sign-in")
    async with http.get(PATH) as answer:
        text = await answer.text()
        assert (answer.status, answer.headers["Cache-Control"]) == (400, "no-store")
    assert "Nothing here waits for this sign-in" in text
    assert "did not go on" not in text
    assert "nothing has changed" not in text


async def test_only_a_visit_uses_an_answer_up(
    http: aiohttp.ClientSession, migration: FakeMigration
) -> None:
    async with http.head(PATH) as answer:
        assert answer.status == 200
    async with http.post(PATH) as answer:
        assert answer.status == 405
    assert migration.queries == []


async def test_a_browser_that_hangs_up_stops_nothing(
    http: aiohttp.ClientSession, migration: FakeMigration
) -> None:
    migration.goes_on.clear()
    visit = asyncio.create_task(http.get(PATH).__aenter__())
    async with asyncio.timeout(10):
        while not migration.queries:
            await asyncio.sleep(0)
    visit.cancel()
    await asyncio.gather(visit, return_exceptions=True)
    migration.goes_on.set()
    async with asyncio.timeout(10):
        await migration.finished.wait()
