"""The front page, robots.txt, and how pages for people are made from templates."""

from collections.abc import Mapping
from typing import Any, Final

import jinja2
from aiohttp import web

from pds.services.server_info import ServerInfo
from pds.web.router import WebHandler, WebRouter

ROBOTS: Final = "# All that is public here may be read by machines too.\nUser-agent: *\nAllow: /\n"
STYLE_PATH: Final = "/static/style.css"


class Pages:
    """Renders templates; everything that is put into one is escaped."""

    def __init__(self) -> None:
        self._loader = jinja2.PackageLoader("pds.web")
        self._environment = jinja2.Environment(
            loader=self._loader,
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(
        self, template: str, values: Mapping[str, Any], *, status: int = 200
    ) -> web.Response:
        """Answer with a page."""
        html = self._environment.get_template(template).render(**values, style_path=STYLE_PATH)
        return web.Response(status=status, text=html, content_type="text/html")

    def source(self, name: str) -> str:
        """The text of a template file as it is."""
        return self._loader.get_source(self._environment, name)[0]


def add_routes(router: WebRouter, *, info: ServerInfo, pages: Pages) -> None:
    """Serve the front page, robots.txt and the style sheet (XRPC-14)."""
    router.get("/", _text(info.banner()))
    router.get("/robots.txt", _text(ROBOTS))
    router.get(STYLE_PATH, _style(pages))


def _text(text: str) -> WebHandler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text)

    return handle


def _style(pages: Pages) -> WebHandler:
    text = pages.source("style.css")

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type="text/css")

    return handle
