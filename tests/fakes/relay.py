"""A relay that is as strict as the strictest, and says why: the rules, without a network.

Everything of spec/sync.md section 5 that a relay checks or only logs is a failure here. What comes
in is decoded by libipld and cbor2 and checked by `tests.independent`: nothing of `pds` is used, so
a mistake of our own formats cannot excuse itself.

`take` returns what happened to one frame: PASSED on, DROPPED (a relay does that silently, a host
must not count on being heard), or FAILED (a host that does this is broken).

Spec: SYNC-2, SYNC-5, SYNC-10, SYNC-11, SYNC-30, SYNC-32, SYNC-35, SYNC-51, REPO-6, REPO-66, REPO-80
"""

import io
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import cbor2
import libipld

from tests.independent import CBOR_CID, Refused, check_commit, demand, invert, read_car, root_of

MAX_FRAME_BYTES = 5_000_000
FUTURE_REV_S = 300
IDENTITY_CACHE_S = 24 * 3600
ACCOUNT_LIMIT = 100
LIMITS = ((1, 50), (3600, 2500 + ACCOUNT_LIMIT), (86_400, 20_000 + 10 * ACCOUNT_LIMIT))
"""(seconds, events): what an untrusted host may send."""
STATUSES = {"takendown", "suspended", "deleted", "deactivated", "desynchronized", "throttled"}
EMPTY_TREE = root_of({})
_TID = re.compile(r"[2-7a-j][2-7a-z]{12}")
_DID = re.compile(r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")

Document = Mapping[str, Any]
Resolve = Callable[[str], Awaitable[Document]]
"""Fetches the DID document; raises Refused when there is none."""
AskStatus = Callable[[str], Awaitable[Mapping[str, Any]]]
"""Calls getRepoStatus on the host (SYNC-51)."""


class Verdict(StrEnum):
    """What became of a frame."""

    PASSED = "passed"
    DROPPED = "dropped"
    FAILED = "failed"


class Dropped(Exception):
    """A relay would let this go without a word."""


@dataclass
class KnownRepo:
    """What the relay remembers of one account."""

    rev: str | None = None
    data: bytes | None = None
    upstream_active: bool = True
    upstream_status: str | None = None
    is_throttled: bool = False


@dataclass
class Relay:
    """The rules for one host, `hostname`, seen at `now_s()` (unix seconds)."""

    hostname: str
    resolve: Resolve
    ask_status: AskStatus
    now_s: Callable[[], float]
    account_limit: int = ACCOUNT_LIMIT
    limits: tuple[tuple[int, int], ...] = LIMITS
    last_seq: int = 0
    repos: dict[str, KnownRepo] = field(default_factory=dict)
    passed: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _identities: dict[str, tuple[float, Document]] = field(default_factory=dict)
    _times: deque[float] = field(default_factory=deque)

    async def take(self, frame: bytes) -> Verdict:
        """Judge one message of the host."""
        where = f"after {self.last_seq}"
        try:
            kind, payload = self._decode(frame)
            where = f"{kind} {payload.get('seq', '')}"
            await self._judge(kind, payload)
        except Refused as error:
            self.failures.append(f"{where}: {error}")
            return Verdict.FAILED
        except Dropped as error:
            self.dropped.append(f"{where}: {error}")
            return Verdict.DROPPED
        self.passed.append((kind, payload))
        return Verdict.PASSED

    def _decode(self, frame: bytes) -> tuple[str, dict[str, Any]]:
        demand(len(frame) <= MAX_FRAME_BYTES, "frame too large")
        try:
            parts = libipld.decode_dag_cbor_multi(frame)
        except ValueError as error:
            raise Refused("frame is no DAG-CBOR") from error
        demand(len(parts) == 2 and all(type(part) is dict for part in parts), "not two maps")
        demand(_is_canonical(frame), "frame is not canonical")
        header, payload = parts
        demand(header.get("op") == 1, f"error {payload.get('error')}: {payload.get('message')}")
        demand(type(header.get("t")) is str and set(header) == {"op", "t"}, "frame header")
        demand("$type" not in payload, "payload has a $type")
        return header["t"], payload

    async def _judge(self, kind: str, payload: dict[str, Any]) -> None:
        if kind == "#info":
            demand(payload.get("name") == "OutdatedCursor" and "seq" not in payload, "info")
            return
        demand(kind in {"#commit", "#sync", "#identity", "#account"}, "unknown message type")
        self._check_seq(payload)
        self._check_quota()
        did = payload["repo"] if kind == "#commit" else payload["did"]
        demand(type(did) is str and _DID.fullmatch(did), "not a DID")
        demand(_is_time(payload.get("time")), "time is no datetime")
        if kind == "#identity":
            self._identities.pop(did, None)
        repo = await self._find_repo(did)
        match kind:
            case "#identity":
                await self._identity(did, payload)
            case "#account":
                self._account(repo, payload)
            case "#sync":
                await self._check_active(did, repo)
                await self._sync(did, repo, payload)
            case "#commit":
                await self._check_active(did, repo)
                await self._commit(did, repo, payload)

    def _check_seq(self, payload: dict[str, Any]) -> None:
        seq = payload.get("seq")
        demand(type(seq) is int and 0 < seq < 2**53, "seq is no positive 53-bit integer")
        demand(seq > self.last_seq, "seq does not increase")
        self.last_seq = seq

    def _check_quota(self) -> None:
        now = self.now_s()
        self._times.append(now)
        while self._times and self._times[0] <= now - 86_400:
            self._times.popleft()
        for seconds, most in self.limits:
            recent = sum(1 for at in self._times if at > now - seconds)
            demand(recent <= most, f"more than {most} events in {seconds} s")

    # Accounts and identities

    async def _find_repo(self, did: str) -> KnownRepo:
        """Find or create the account; its DID document must name this host (5.1)."""
        known = self.repos.get(did)
        if _host_of(await self._document(did)) != self.hostname:
            self._identities.pop(did, None)
            demand(
                _host_of(await self._document(did)) == self.hostname,
                "the DID document names another host",
            )
        if known is None:
            known = self.repos[did] = KnownRepo(is_throttled=len(self.repos) >= self.account_limit)
        if known.is_throttled:
            raise Dropped("host-throttled: too many accounts")
        return known

    async def _document(self, did: str) -> Document:
        cached = self._identities.get(did)
        if cached is not None and cached[0] > self.now_s() - IDENTITY_CACHE_S:
            return cached[1]
        document = await self.resolve(did)
        demand(document.get("id") == did, "the DID document has another id")
        self._identities[did] = (self.now_s(), document)
        return document

    async def _identity(self, did: str, payload: dict[str, Any]) -> None:
        demand(set(payload) <= {"seq", "did", "time", "handle"}, "fields of #identity")
        handle = payload.get("handle")
        if handle is not None and handle != "handle.invalid":
            aliases = (await self._document(did)).get("alsoKnownAs", [])
            named = next((alias for alias in aliases if alias.startswith("at://")), None)
            demand(named == f"at://{handle}", f"{handle} is not the handle of the DID document")

    def _account(self, repo: KnownRepo, payload: dict[str, Any]) -> None:
        demand(set(payload) <= {"seq", "did", "time", "active", "status"}, "fields of #account")
        active, status = payload.get("active"), payload.get("status")
        demand(type(active) is bool, "active is no boolean")
        demand(active or status is not None, "inactive without a status")
        demand(status is None or status in STATUSES, "unknown status")
        repo.upstream_active, repo.upstream_status = active, status

    async def _check_active(self, did: str, repo: KnownRepo) -> None:
        """Ask the host again before content of an inactive account is refused (SYNC-51)."""
        if repo.upstream_active:
            return
        answer = await self.ask_status(did)
        demand(answer.get("did") == did and type(answer.get("active")) is bool, "getRepoStatus")
        demand(answer["active"], "content of an account that is not active (SYNC-32)")
        repo.upstream_active, repo.upstream_status = True, None

    # Content

    async def _check_signed(
        self, did: str, rev: object, roots: list[bytes], blocks: dict[bytes, bytes]
    ) -> dict[str, Any]:
        demand(len(roots) == 1 and roots[0] in blocks, "the commit block is missing")
        demand(type(rev) is str and _TID.fullmatch(rev), "rev is no TID")
        try:
            commit = check_commit(
                blocks[roots[0]], did=did, did_key=_signing_key(await self._document(did))
            )
        except Refused:
            # The key may have changed without a word: ask once more, as relays do.
            self._identities.pop(did, None)
            commit = check_commit(
                blocks[roots[0]], did=did, did_key=_signing_key(await self._document(did))
            )
        demand(commit["rev"] == rev, "rev is not that of the commit")
        demand(_rev_s(str(rev)) <= self.now_s() + FUTURE_REV_S, "rev is in the future (REPO-6)")
        demand(_is_blessed(commit["data"]), "data is no blessed link")
        return commit

    async def _sync(self, did: str, repo: KnownRepo, event: dict[str, Any]) -> None:
        demand(set(event) == {"seq", "did", "time", "rev", "blocks"}, "fields of #sync")
        demand(len(event["blocks"]) <= 10_000, "sync blocks too large")
        roots, blocks = _read_car(event["blocks"])
        demand(len(blocks) == 1, "a sync holds the commit block alone")
        commit = await self._check_signed(did, event["rev"], roots, blocks)
        if repo.rev is not None:
            demand(event["rev"] >= repo.rev, "a sync goes back")
            if event["rev"] == repo.rev:
                demand(commit["data"] == repo.data, "one rev with two trees")
        repo.rev, repo.data = event["rev"], commit["data"]

    async def _commit(self, did: str, repo: KnownRepo, event: dict[str, Any]) -> None:
        _check_commit_fields(event)
        if repo.rev is not None and event["rev"] <= repo.rev:
            raise Refused("rev does not increase")
        roots, blocks = _read_car(event["blocks"])
        demand(roots == [event["commit"]], "root of blocks is not the commit")
        commit = await self._check_signed(did, event["rev"], roots, blocks)
        if repo.rev is None:
            demand(
                event["since"] is None or "prevData" in event, "prevData is missing (first event)"
            )
        else:
            demand(event["since"] == repo.rev, "since is not the previous rev")
            demand(event.get("prevData") == repo.data, "prevData is not the previous tree")
        _check_ops(event["ops"], blocks)
        before = event.get("prevData", EMPTY_TREE)
        for ops in (event["ops"], list(reversed(event["ops"]))):
            demand(invert(commit["data"], ops, blocks) == before, "operations cannot be inverted")
        repo.rev, repo.data = event["rev"], commit["data"]


def _check_commit_fields(event: dict[str, Any]) -> None:
    required = {"seq", "time", "repo", "commit", "rev", "since", "blocks", "ops", "blobs"}
    required |= {"tooBig", "rebase"}
    demand(required <= set(event) <= required | {"prevData"}, "fields of #commit")
    demand(event["tooBig"] is False and event["rebase"] is False, "tooBig or rebase")
    demand(event["blobs"] == [], "blobs is not empty")
    demand(0 < len(event["blocks"]) <= 2_000_000, "size of blocks")
    demand(len(event["ops"]) <= 200, "more than 200 ops")
    since = event["since"]
    demand(since is None or _TID.fullmatch(since), "since is no TID")
    demand("prevData" not in event or _is_blessed(event["prevData"]), "prevData is no link")


def _check_ops(ops: list[dict[str, Any]], blocks: dict[bytes, bytes]) -> None:
    demand(len({op["path"] for op in ops}) == len(ops), "a path appears twice")
    for op in ops:
        has_prev = "prev" in op
        match op["action"]:
            case "create":
                demand(set(op) == {"action", "path", "cid"} and op["cid"], "form of a create")
            case "update":
                demand(has_prev and op["prev"] != op["cid"], "an update that changes nothing")
            case "delete":
                demand(has_prev and op["cid"] is None, "form of a delete")
            case other:
                raise Refused(f"unknown action {other}")
        if op["cid"] is not None:
            demand(op["cid"] in blocks, "the record of an op is missing")
            demand(len(blocks[op["cid"]]) <= 1_000_000, "record too large")


def _is_canonical(frame: bytes) -> bool:
    decoder = cbor2.CBORDecoder(io.BytesIO(frame))
    return b"".join(cbor2.dumps(decoder.decode(), canonical=True) for _ in range(2)) == frame


def _read_car(content: bytes) -> tuple[list[bytes], dict[bytes, bytes]]:
    try:
        return read_car(content)
    except (ValueError, IndexError, KeyError) as error:
        raise Refused("blocks are no CAR") from error


def _is_blessed(link: object) -> bool:
    return isinstance(link, bytes) and len(link) == 36 and link[:4] == CBOR_CID


def _is_time(text: object) -> bool:
    if not isinstance(text, str) or not _TIME.fullmatch(text):
        return False
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _rev_s(rev: str) -> float:
    number = 0
    for letter in rev:
        number = number * 32 + "234567abcdefghijklmnopqrstuvwxyz".index(letter)
    return datetime.fromtimestamp((number >> 10) / 1e6, UTC).timestamp()


def _entry(document: Document, part: str, name: str) -> Mapping[str, Any]:
    for entry in document.get(part, []):
        if entry.get("id") in {name, document["id"] + name}:
            found: Mapping[str, Any] = entry
            return found
    raise Refused(f"the DID document has no {name}")


def _signing_key(document: Document) -> str:
    return "did:key:" + str(
        _entry(document, "verificationMethod", "#atproto")["publicKeyMultibase"]
    )


def _host_of(document: Document) -> str:
    return urlsplit(_entry(document, "service", "#atproto_pds")["serviceEndpoint"]).netloc
