"""Does the network see a moved account? Relays and the AppView are asked for a while.

A relay may keep an old status for long (some accounts of every move are affected), so this is the
last step of every move: what does not see the account is named, with what to do about it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pds.errors import RemoteError
from pds.net.http import HttpClient
from pds.net.xrpc_client import XrpcClient, XrpcRejected
from pds.protocol.syntax import Did

TIMEOUT_S: Final = 10.0
PAUSES_S: Final = (0.5, 1.5, 4.0, 10.0, 20.0, 30.0)
"""Between the looks: a minute in all."""

Announce = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Sight:
    """What one service knows of an account."""

    service: str
    kind: str
    is_seen: bool
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Return it for people."""
        return {
            "service": self.service,
            "kind": self.kind,
            "seen": self.is_seen,
            "detail": self.detail,
        }


class Watch:
    """Asks the configured relays and the AppView."""

    def __init__(
        self,
        *,
        http: HttpClient,
        relays: Sequence[str],
        appview_url: str | None,
        announce: Announce,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`announce` tells relays that this host has news."""
        self._client = XrpcClient(http)
        self._relays = tuple(dict.fromkeys(relays))
        self._appview_url = appview_url
        self._announce = announce
        self._sleep = sleep

    async def look(self, did: Did, *, rev: str | None, handle: str | None) -> list[Sight]:
        """Ask everybody until all see the account, at most for a minute.

        `rev` is the oldest that a relay shall know, None if it is another host's to say.
        """
        if rev is not None:
            await self._announce()
        sights: list[Sight] = []
        for pause_s in (*PAUSES_S, None):
            sights = await asyncio.gather(
                *(self._ask_relay(relay, did, rev) for relay in self._relays),
                *([self._ask_appview(self._appview_url, did, handle)] if self._appview_url else []),
            )
            if pause_s is None or all(sight.is_seen for sight in sights):
                break
            await self._sleep(pause_s)
        return sights

    async def _ask_relay(self, relay: str, did: Did, rev: str | None) -> Sight:
        def seen(is_seen: bool, detail: str) -> Sight:
            return Sight(relay, "relay", is_seen, detail)

        try:
            status = await self._client.query(
                relay, "com.atproto.sync.getRepoStatus", {"did": did}, timeout_s=TIMEOUT_S
            )
            if status.get("active") is not True:
                return seen(False, f"status {str(status.get('status'))[:50]}")
            known = status.get("rev")
            if rev is None:
                return seen(True, "active")
            if not isinstance(known, str):
                latest = await self._client.query(
                    relay, "com.atproto.sync.getLatestCommit", {"did": did}, timeout_s=TIMEOUT_S
                )
                known = latest.get("rev")
        except XrpcRejected as error:
            return seen(False, error.error)
        except RemoteError as error:
            return seen(False, f"no answer ({type(error).__name__})")
        if not isinstance(known, str) or known < rev:
            return seen(False, "active, with an older commit")
        return seen(True, "active")

    async def _ask_appview(self, url: str, did: Did, handle: str | None) -> Sight:
        def seen(is_seen: bool, detail: str) -> Sight:
            return Sight(url, "appview", is_seen, detail)

        try:
            profile = await self._client.query(
                url, "app.bsky.actor.getProfile", {"actor": did}, timeout_s=TIMEOUT_S
            )
        except XrpcRejected as error:
            return seen(False, error.error)
        except RemoteError as error:
            return seen(False, f"no answer ({type(error).__name__})")
        if profile.get("did") != did:
            return seen(False, "another account")
        if handle is not None and profile.get("handle") != handle:
            return seen(False, f"handle {str(profile.get('handle'))[:250]}")
        return seen(True, "profile is there")
