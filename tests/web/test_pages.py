"""Pages and documents outside XRPC: what they say, and the headers that keep them harmless."""

import asyncio
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from pds.errors import Unavailable
from pds.services.health import Health
from pds.services.mail import Mail, MemoryMailbox
from pds.services.server_info import ServerInfo, ServerInfoSettings
from pds.store.engine import HealthStatus
from pds.web import health, mailbox, pages, well_known
from pds.web.pages import Pages
from pds.web.router import WebRouter
from pds.xrpc.listener import Listener, ListenerSettings

ALICE = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


class FakeAccounts:
    """Two accounts: one active, one not."""

    async def lookup(self, name: str) -> Any:
        if name in ("alice.test", ALICE):
            return SimpleNamespace(did=ALICE, handle="alice.test", is_active=True)
        if name == "gone.test":
            return SimpleNamespace(did=ALICE, handle="gone.test", is_active=False)
        return None


class FakeEngine:
    def __init__(self) -> None:
        self.is_broken = False
        self.status = HealthStatus.OK

    async def read(self, label: str, fn: Any) -> None:
        if self.is_broken:
            raise Unavailable("disk on fire at /secret/path")

    def health(self) -> Any:
        return SimpleNamespace(status=self.status)


def info(**changes: Any) -> ServerInfo:
    facts: dict[str, Any] = {
        "version": "1.2.3",
        "service_did": "did:web:pds.example.org",
        "hostname": "pds.example.org",
        "public_url": "https://pds.example.org",
        "handle_domains": (".pds.example.org",),
        "invite_required": True,
        "blob_upload_limit": 1000,
    }
    return ServerInfo(ServerInfoSettings(**(facts | changes)))


class Site:
    """The pages on loopback."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.now_s = 0.0
        self.mailbox = MemoryMailbox()
        self.router = WebRouter()
        self.url = ""
        rendered = Pages()
        probe: Any = self.engine
        health.add_routes(
            self.router, Health(engine=probe, version="1.2.3", monotonic=lambda: self.now_s)
        )
        pages.add_routes(self.router, info=info(), pages=rendered)
        accounts: Any = FakeAccounts()
        well_known.add_routes(self.router, info=info(), accounts=accounts)
        mailbox.add_routes(self.router, mailbox=self.mailbox, pages=rendered)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    listener = Listener(made.router.handle, ListenerSettings())
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = await asyncio.get_running_loop().create_server(listener, sock=sock)
    made.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    yield made
    server.close()
    await listener.shutdown(1)


@pytest.fixture
async def http(site: Site) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(site.url) as session:
        yield session


async def test_the_front_page_says_what_this_is(http: aiohttp.ClientSession) -> None:
    """(XRPC-14)"""
    async with http.get("/") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/plain"
        text = await answer.text()
        assert "pds.example.org" in text
        assert "AT Protocol" in text
    async with http.get("/robots.txt") as answer:
        assert "Allow: /" in await answer.text()


async def test_health_tells_no_details(http: aiohttp.ClientSession, site: Site) -> None:
    """(XRPC-14)"""
    async with http.get("/xrpc/_health") as answer:
        assert (answer.status, await answer.json()) == (200, {"version": "1.2.3"})
        assert answer.headers["Cache-Control"] == "no-store"
    site.engine.is_broken = True
    async with http.get("/xrpc/_health") as answer:
        assert answer.status == 200, "good news may be a second old"
    site.now_s = 2.0
    async with http.get("/xrpc/_health") as answer:
        assert answer.status == 503
        assert await answer.json() == {"version": "1.2.3", "error": "Database unavailable"}
    site.engine.is_broken, site.engine.status = False, HealthStatus.FAILED
    async with http.get("/xrpc/_health") as answer:
        assert (answer.status, (await answer.json())["error"]) == (503, "Writes are refused")


async def test_our_did_document_names_this_server(http: aiohttp.ClientSession) -> None:
    """(ID-34)"""
    async with http.get("/.well-known/did.json") as answer:
        document = await answer.json()
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert document["id"] == "did:web:pds.example.org"
    assert document["service"] == [
        {
            "id": "#atproto_pds",
            "type": "AtprotoPersonalDataServer",
            "serviceEndpoint": "https://pds.example.org",
        }
    ]


def test_a_did_that_is_published_elsewhere_has_no_document_here() -> None:
    assert info(service_did="did:web:other.example").did_document() is None
    local = info(service_did="did:web:localhost%3A2583", public_url="http://localhost:2583")
    assert local.did_document() is not None


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("alice.test", 200),
        ("Alice.TEST:8080", 200),
        ("gone.test", 404),
        ("nobody.test", 404),
        (ALICE, 404),
        ("", 404),
    ],
)
async def test_handles_prove_themselves_by_host(
    http: aiohttp.ClientSession, host: str, status: int
) -> None:
    """(ID-12)"""
    async with http.get("/.well-known/atproto-did", headers={"Host": host}) as answer:
        assert answer.status == status
        assert answer.content_type == "text/plain"
        if status == 200:
            assert await answer.text() == ALICE


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("pds.example.org", 200),
        ("alice.test", 200),
        ("Alice.test", 200),
        ("nobody.test", 404),
        (ALICE, 404),
        ("\u00e4.test", 404),
        ("", 404),
    ],
)
async def test_a_certificate_is_for_names_that_are_served(
    http: aiohttp.ClientSession, name: str, status: int
) -> None:
    """(ID-14)"""
    async with http.get("/tls-check", params={"domain": name}) as answer:
        assert answer.status == status


async def test_a_host_that_is_no_text_has_no_user(http: aiohttp.ClientSession) -> None:
    url = http._base_url
    assert url is not None
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        b"GET /.well-known/atproto-did HTTP/1.1\r\nHost: \xff\xfe\r\nConnection: close\r\n\r\n"
    )
    assert (await asyncio.wait_for(reader.read(), 60)).startswith(b"HTTP/1.1 404")
    writer.close()


async def test_documents_may_be_read_from_every_origin_and_pages_may_not(
    http: aiohttp.ClientSession,
) -> None:
    """(XRPC-11)"""
    async with http.options("/.well-known/atproto-did") as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.headers["Access-Control-Max-Age"] == "86400"
    async with http.get("/mailbox") as answer:
        assert "Access-Control-Allow-Origin" not in answer.headers
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_mailbox_escapes_what_it_shows(http: aiohttp.ClientSession, site: Site) -> None:
    async with http.get("/mailbox") as answer:
        assert "No mail yet" in await answer.text()
    hostile = "<script>alert(1)</script>"
    await site.mailbox.send(Mail("a@example.test", hostile, hostile, "test"), now_us=5)
    await site.mailbox.send(Mail("b@example.test", "Second", "text", "test"), now_us=6)
    for path in ("/mailbox", "/mailbox/5"):
        async with http.get(path) as answer:
            page = await answer.text()
            assert answer.status == 200
            assert "<script" not in page
            assert "&lt;script&gt;" in page
            assert "<style" not in page
            assert 'name="viewport"' in page
    async with http.get("/mailbox") as answer:
        page = await answer.text()
        assert page.index("Second") < page.index("&lt;script")
    for path in ("/mailbox/99", "/mailbox/x", "/mailbox/"):
        async with http.get(path) as answer:
            assert answer.status == 404


async def test_the_style_sheet_is_a_file_of_its_own(http: aiohttp.ClientSession) -> None:
    async with http.get(pages.STYLE_PATH) as answer:
        assert answer.content_type == "text/css"
        assert "color-scheme" in await answer.text()


async def test_unknown_paths_and_verbs_get_plain_refusals(
    http: aiohttp.ClientSession, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async with http.get("/nothing") as answer:
        assert (answer.status, await answer.text()) == (404, "Not Found\n")
    async with http.post("/", data=b"x" * 100_000) as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET, HEAD"
    async with http.post("/mailbox/5") as answer:
        assert answer.status == 405

    async def broken(request: Any) -> Any:
        raise RuntimeError("secret detail")

    site.router.get("/broken", broken)
    async with http.get("/broken") as answer:
        assert answer.status == 500
        assert "secret" not in await answer.text()
    assert len(caplog.records) == 1


def test_the_description_has_what_clients_read() -> None:
    described = info(
        privacy_policy_url="https://x.example/privacy", contact_email="a@x.example"
    ).describe()
    assert described == {
        "did": "did:web:pds.example.org",
        "availableUserDomains": [".pds.example.org"],
        "inviteCodeRequired": True,
        "blobUploadLimit": 1000,
        "links": {"privacyPolicy": "https://x.example/privacy"},
        "contact": {"email": "a@x.example"},
    }
