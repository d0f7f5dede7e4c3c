"""What a browser does at the sign-in and consent pages of the reference, request by request."""

from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

API = "/@atproto/oauth-provider/~api"


@dataclass
class Browser:
    """Keeps cookies and sends the headers that pages are checked by."""

    http: aiohttp.ClientSession
    cookies: dict[str, str] = field(default_factory=dict)

    async def open(self, url: str) -> None:
        """Go to a page by a link on another site."""
        headers = {
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document",
        }
        status, text, _ = await self._ask("GET", url, headers)
        assert status == 200, text

    async def post(self, page: str, path: str, value: Any, token: str | None = None) -> Any:
        """Let a script on a page call the page's server."""
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(page))
        headers = {
            "Sec-Fetch-Site": "same-origin",
            "Sec-Fetch-Mode": "same-origin",
            "Sec-Fetch-Dest": "empty",
            "Origin": origin,
            "Referer": page,
            "X-CSRF-Token": self.cookies["csrf-token"],
        }
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        status, text, value = await self._ask("POST", f"{origin}{API}{path}", headers, value)
        assert status == 200, text
        return value

    async def follow(self, page: str, url: str) -> str:
        """Go from a page to one that only sends on; return where to."""
        headers = {
            "Sec-Fetch-Site": "same-origin",
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document",
            "Referer": page,
        }
        status, text, location = await self._ask("GET", url, headers)
        assert status == 303, text
        return str(location)

    async def _ask(
        self, verb: str, url: str, headers: dict[str, str], value: Any = None
    ) -> tuple[int, str, Any]:
        cookie = "; ".join(f"{name}={content}" for name, content in self.cookies.items())
        async with self.http.request(
            verb,
            URL(url, encoded=True),
            headers=headers | {"Cookie": cookie, "User-Agent": "Mozilla/5.0 (a test)"},
            json=value,
            allow_redirects=False,
        ) as answer:
            for line in answer.headers.getall("Set-Cookie", []):
                for name, morsel in SimpleCookie(line).items():
                    self.cookies[name] = morsel.value
            text = await answer.text()
            found = answer.headers.get("Location")
            if found is None and answer.content_type == "application/json":
                found = await answer.json()
            return answer.status, text, found


async def sign_in(
    http: aiohttp.ClientSession, link: str, *, did: str, password: str, scope: str | None = None
) -> str:
    """Sign in at a link, allow what is asked, or `scope`; return where the browser is sent."""
    browser = Browser(http)
    await browser.open(link)
    given = {"locale": "en", "username": did, "password": password, "remember": False}
    answer = await browser.post(link, "/sign-in", given)
    consent = {"did": did} if scope is None else {"did": did, "scope": scope}
    answer = await browser.post(link, "/consent", consent, answer["ephemeralToken"])
    return await browser.follow(link, answer["url"])
