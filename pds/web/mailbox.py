"""The mailbox page of development: every mail that would have been sent.

A mail is addressed by the microsecond in which it arrived. Its HTML part is shown in a frame with
an empty `sandbox`: no scripts, no forms, an origin of its own; it is there to be looked at.
"""

from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from pds.services.mail import MemoryMailbox
from pds.web.pages import Pages
from pds.web.router import WebHandler, WebRouter

PATH: Final = "/mailbox"
FRAME_POLICY: Final = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The frame has the policy of its page: of what mails may hold, only their styles are let in."""


def add_routes(router: WebRouter, *, mailbox: MemoryMailbox, pages: Pages) -> None:
    """Serve the list and the single mails."""
    router.get(PATH, _list_mails(mailbox, pages))
    router.mount(f"{PATH}/", _show_mail(mailbox, pages))


def _list_mails(mailbox: MemoryMailbox, pages: Pages) -> WebHandler:
    async def handle(request: web.Request) -> web.StreamResponse:
        mails = [
            {"id": kept.at_us, "at": _instant(kept.at_us), "mail": kept.mail}
            for kept in reversed(mailbox.received())
        ]
        return pages.render("mailbox.html", {"mails": mails, "path": PATH})

    return handle


def _show_mail(mailbox: MemoryMailbox, pages: Pages) -> WebHandler:
    async def handle(request: web.Request) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"])
        asked = request.rel_url.raw_path.removeprefix(f"{PATH}/")
        for kept in mailbox.received():
            if str(kept.at_us) == asked:
                values = {"at": _instant(kept.at_us), "mail": kept.mail, "path": PATH}
                page = pages.render("mail.html", values)
                page.headers["Content-Security-Policy"] = FRAME_POLICY
                return page
        raise web.HTTPNotFound

    return handle


def _instant(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
