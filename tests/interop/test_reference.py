"""The reference PDS and ours side by side: the same requests, the same answers.

Each intended difference is named in `stories/known.py` with the subject of its row in
docs/compatibility.md; any other difference fails, and so does a named one that is gone.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from email import message_from_bytes
from email.policy import default
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.fakes.appview import running_appview
from tests.fakes.plc import running_plc
from tests.interop.reference import running_reference
from tests.interop.side_by_side import Pair, Side
from tests.interop.stories import accounts, operators, probes, records, sync, views
from tests.interop.stories.known import KNOWN, KNOWN_WITH_APPVIEW
from tests.support import ROOT
from tests.support_client import Client, Person
from tests.support_live import live_server_in
from tests.support_process import free_port

STORIES = (
    accounts.sign_up,
    accounts.sessions,
    accounts.app_passwords,
    accounts.service_tokens,
    accounts.invites,
    accounts.mail,
    records.create,
    records.put_and_delete,
    records.apply,
    records.read,
    records.blobs,
    sync.repos,
    sync.identity,
    accounts.life,
    operators.accounts,
    operators.takedowns,
    probes.every_method,
)
MIN_REQUESTS = 300


@contextmanager
def mail_server(mails: list[tuple[str, str]]) -> Iterator[str]:
    """Take mails over SMTP on loopback into `mails`; the block gets the URL."""

    class Keep:
        async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
            content = envelope.content
            assert isinstance(content, bytes)
            message = message_from_bytes(content, policy=default)
            body = message.get_body(("plain", "html"))
            assert body is not None
            mails.extend((to, body.get_content()) for to in envelope.rcpt_tos)
            return "250 OK"

    port = free_port()
    controller = Controller(Keep(), hostname="127.0.0.1", port=port, ready_timeout=60)
    controller.start()
    try:
        yield f"smtp://127.0.0.1:{port}"
    finally:
        controller.stop()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """Both servers, fresh, each with its own mailbox."""
    async with running_pair(tmp_path, ({}, {})) as pair:
        yield pair


@asynccontextmanager
async def running_pair(
    tmp_path: Path, settings: tuple[dict[str, str], dict[str, str]]
) -> AsyncIterator[Pair]:
    """Run both servers, each with settings of its own."""
    sides = (Side("reference", ""), Side("ours", ""))
    mail = [mail_server(side.mails) for side in sides]
    async with running_plc() as plc, aiohttp.ClientSession() as session:
        urls = [await asyncio.to_thread(one.__enter__) for one in mail]
        sender = {
            "PDS_EMAIL_FROM_ADDRESS": "pds@example.com",
            "PDS_BLOB_UPLOAD_LIMIT": "100000",
            "PDS_ENABLE_DID_DOC_WITH_SESSION": "true",
        }
        plc_url = plc.url.replace("127.0.0.1", "localhost")
        started = running_reference(
            tmp_path / "reference", plc_url, PDS_EMAIL_SMTP_URL=urls[0], **sender, **settings[0]
        )
        sides[0].url = await asyncio.to_thread(started.__enter__)
        try:
            async with live_server_in(
                tmp_path / "ours", PDS_EMAIL_SMTP_URL=urls[1], **sender, **settings[1]
            ) as server:
                sides[1].url = server.url
                yield Pair(session, *sides)
        finally:
            await asyncio.to_thread(started.__exit__, None, None, None)
            for one in mail:
                await asyncio.to_thread(one.__exit__, None, None, None)


async def test_both_answer_alike(pair: Pair) -> None:
    for story in STORIES:
        await story(pair)
    judge(pair, KNOWN)
    assert pair.count >= MIN_REQUESTS


async def test_both_pass_on_and_patch_alike(tmp_path: Path) -> None:
    """With an AppView each, which has read everything up to the same moment."""
    async with running_appview() as one, running_appview() as other:
        appviews = (one, other)
        settings = tuple(
            {"PDS_BSKY_APP_VIEW_URL": view.url, "PDS_BSKY_APP_VIEW_DID": view.did}
            for view in appviews
        )
        async with running_pair(tmp_path, settings) as pair:
            for side in pair.sides:
                side.names["appview"] = one.did

            async def index(name: str) -> None:
                for view, side in zip(appviews, pair.sides, strict=True):
                    client = Client(pair.session, side.url, side.names[f"{name}.access"])
                    did = side.names[f"{name}.did"]
                    await view.index(Person(did, f"{name}.test", "", "", client), "")
                    del view.keys[did]  # The tokens' signatures are judged elsewhere.

            for story in (views.views, views.passed_on, views.preferences):
                await story(pair, index)
            judge(pair, KNOWN_WITH_APPVIEW)


def judge(pair: Pair, known: dict[str, str]) -> None:
    """Fail on a difference that is not intended, and on an intended one that is gone."""
    found = dict(pair.differences)
    print(f"{pair.count} requests to both, {len(found)} of the answers differ")
    if path := os.environ.get("PDS_TEST_DIFFERENCES"):
        Path(path).write_text(json.dumps(found, indent=1, default=repr))
    intended = {label: [one for one in known if fnmatchcase(label, one)] for label in found}
    unexpected = {label: both for label, both in found.items() if not intended[label]}
    assert not unexpected, show(unexpected)
    gone = sorted(set(known).difference(*intended.values()))
    assert not gone, f"these do not differ any more: {gone}"


def test_every_intended_difference_is_documented() -> None:
    text = (ROOT / "docs" / "compatibility.md").read_text()
    subjects = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")}
    named = {*KNOWN.values(), *KNOWN_WITH_APPVIEW.values()}
    missing = {subject for subject in named if subject not in subjects}
    assert not missing, f"no row in docs/compatibility.md for {sorted(missing)}"


def show(differences: dict[str, Any]) -> str:
    """Lines of label, the reference's answer and ours."""
    lines = [f"{len(differences)} answers differ:"]
    for label, (reference, ours) in differences.items():
        lines.append(f"{label}\n    reference {brief(reference)}\n    ours      {brief(ours)}")
    return "\n".join(lines)


def brief(value: Any) -> str:
    """One line of it."""
    return re.sub(r"\s+", " ", str(value))[:400]
