"""Read-after-write: an AppView's answer, with what the caller wrote since the AppView looked.

An AppView says in `atproto-repo-rev` up to which rev of the caller's repo it knows. What was
committed behind it is put into the answer: the profile where the caller is shown, posts into the
own feed, the timeline and threads. The header `Atproto-Upstream-Lag` then says, in milliseconds,
how far behind the AppView is.

An answer that is not what its lexicon says is passed on as it came, and so is one that would not be
after the change. When there is nothing newer, which is nearly always, the cost is one read of two
rows, and the body is never touched.

An AppView that has seen nothing of the account since it lives here is not patched: the account has
moved, and what looks new is old.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, TypeVarTuple

import orjson

from pds.protocol.lexicon.catalog import Catalog, LexiconError
from pds.protocol.syntax import InvalidSyntax, parse_tid
from pds.protocol.tid import decode_tid
from pds.services.account_cache import AccountCache
from pds.services.local_records import LocalReader, Unseen
from pds.services.local_views import ImageUrls, JsonMap, ViewMaker
from pds.services.principal import Principal
from pds.services.proxy import ProxyTarget
from pds.services.proxy_answers import ProxiedAnswer, announced_bytes
from pds.services.quoted_views import QuotedViews
from pds.services.read_after_write_patches import PATCHES, Local, is_of_interest
from pds.store.clock import Clock
from pds.store.engine import Engine

JSON: Final = "application/json"
REV_HEADER: Final = "atproto-repo-rev"
LAG_HEADER: Final = "Atproto-Upstream-Lag"
KEPT_HEADERS: Final = (REV_HEADER, "atproto-content-labelers", "content-language")
MAX_BYTES: Final = 4 * 1024 * 1024
"""Larger answers are not changed: as objects they take ten times as much memory."""
READABLE_CODINGS: Final = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})
HEAVY_BYTES: Final = 65_536
"""Longer bodies are parsed and checked on a thread: the event loop serves everybody (B5)."""
CLOCK_SLACK_US: Final = 60_000_000
"""How much younger than its first commit an account may look."""
US_PER_MS: Final = 1000

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_JSON_TYPE: Final = re.compile(r"application/(?:[\w.-]+\+)?json\s*(?:;|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ViewAnswer:
    """An answer made here: JSON bytes and headers."""

    body: bytes
    headers: Mapping[str, str]
    status: int = 200


class ReadAfterWrite:
    """Patches the answers of the six views."""

    def __init__(
        self,
        *,
        engine: Engine,
        wall: Clock,
        accounts: AccountCache,
        catalog: Catalog,
        reader: LocalReader,
        quoted: QuotedViews,
        urls: ImageUrls,
    ) -> None:
        self._engine = engine
        self._wall = wall
        self._accounts = accounts
        self._catalog = catalog
        self._reader = reader
        self._quoted = quoted
        self._urls = urls

    async def patch(
        self,
        principal: Principal,
        nsid: str,
        params: Mapping[str, Any],
        answer: ProxiedAnswer,
        target: ProxyTarget,
    ) -> ViewAnswer | None:
        """Return the answer with what is newer here; None to pass it on as it comes.

        Raises: UpstreamError when the body has to be read and cannot.
        """
        if answer.status != 200 or not _is_readable(answer.headers):
            return None
        unseen = await self.find_unseen(principal, answer.headers.get(REV_HEADER))
        if unseen is None or not is_of_interest(nsid, params, unseen):
            return None
        content = await answer.read(MAX_BYTES)
        kept = {name: answer.headers[name] for name in KEPT_HEADERS if name in answer.headers}
        as_it_came = ViewAnswer(
            content, {**kept, "content-type": answer.headers.get("content-type", JSON)}
        )
        value = await _run(len(content), self._parse, nsid, content)
        if value is None:
            return as_it_came
        posts = PATCHES[nsid].choose(value, unseen, params)
        did = unseen.author.did
        quoted = await self._quoted.find(posts, asker=did, target=target)
        local = Local(unseen.author, unseen.is_profile_new, posts, self.maker(quoted))
        body = await _run(len(content), self._change, nsid, value, local)
        if body is None:
            return as_it_came
        return ViewAnswer(body, {**kept, "content-type": JSON, **self.lag(unseen)})

    async def find_unseen(self, principal: Principal, rev: str | None) -> Unseen | None:
        """Return what the caller wrote behind the rev that an AppView named."""
        try:
            known = parse_tid(rev or "")
        except InvalidSyntax:
            return None
        account = await self._accounts.get_by_aid(principal.aid or 0)
        if account is None or decode_tid(known)[0] + CLOCK_SLACK_US < account.created_at:
            return None
        return await self._engine.read("view.unseen", self._reader.read_unseen, account.aid, known)

    def maker(self, quoted: Mapping[str, Any]) -> ViewMaker:
        """Return what makes views of posts that no AppView knows."""
        return ViewMaker(self._urls, quoted, is_unseen=True)

    def lag(self, unseen: Unseen) -> dict[str, str]:
        """Return the header that says how far the AppView is behind."""
        oldest_us = unseen.oldest_us
        if oldest_us is None:
            return {}
        return {LAG_HEADER: str(max(0, self._wall.now_us() - oldest_us) // US_PER_MS)}

    def _parse(self, nsid: str, content: bytes) -> JsonMap | None:
        """Return a body that is what its lexicon says, or None."""
        try:
            value = orjson.loads(content)
        except ValueError:
            return None
        return value if self._is_valid(nsid, value) else None

    def _change(self, nsid: str, value: JsonMap, local: Local) -> bytes | None:
        changed = PATCHES[nsid].change(value, local)
        try:
            return orjson.dumps(changed) if self._is_valid(nsid, changed) else None
        except TypeError:  # Somebody's record is nested more deeply than can be written.
            return None

    def _is_valid(self, nsid: str, value: Any) -> bool:
        method = self._catalog.method(nsid)
        if method is None:
            return False
        try:
            method.check_output(value)
        except LexiconError:
            return False
        return True


def _is_readable(headers: Mapping[str, str]) -> bool:
    """Whether a body may be JSON, of a size and in a coding that we read."""
    is_large = announced_bytes(headers) > MAX_BYTES
    coding = headers.get("content-encoding", "").strip().lower()
    return is_json(headers.get("content-type")) and not is_large and coding in READABLE_CODINGS


def is_json(content_type: str | None) -> bool:
    """Whether a body may be JSON: it says so, or nothing."""
    return content_type is None or _JSON_TYPE.match(content_type) is not None


async def _run(size: int, fn: "Callable[[*Ts], T]", *args: *Ts) -> T:
    """Run a function here, or on a thread when it has much to read."""
    return await asyncio.to_thread(fn, *args) if size > HEAVY_BYTES else fn(*args)
