"""com.atproto.sync.*: what relays and mirrors fetch, save for the firehose itself.

Some methods are made for relays and indexers. This host answers them for itself: it lists one host,
and to whoever asks it to crawl or to notice an update it says yes and does nothing, as it reads no
other host.

A caller who shows a session or the operator's password sees repos that are hidden from others
(SYNC-70); everybody else needs no credential.
"""

import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final

from aiohttp import web

from pds.errors import RequestError
from pds.protocol.car import MEDIA_TYPE
from pds.protocol.data import Json
from pds.services.hosting import HostStatus
from pds.xrpc.access import REPO, REPO_HEAD, REPO_STATUS
from pds.xrpc.server import Auth, Call, MethodTable

routes: Final = MethodTable()

_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@routes.method("com.atproto.sync.getRepo", auth=Auth.OPTIONAL, subject=REPO)
async def get_repo(call: Call) -> web.StreamResponse:
    """Stream a repo as a CAR, whole or what is newer than `since`."""
    params = call.params
    return await _stream(
        call,
        call.services.exports.repo(
            params["did"], since=params.get("since"), principal=call.principal
        ),
    )


@routes.method("com.atproto.sync.getCheckout", auth=Auth.OPTIONAL, subject=REPO)
async def get_checkout(call: Call) -> web.StreamResponse:
    """Stream a whole repo; the old name of getRepo."""
    exports = call.services.exports
    return await _stream(call, exports.repo(call.params["did"], principal=call.principal))


@routes.method("com.atproto.sync.getBlocks", auth=Auth.OPTIONAL, subject=REPO)
async def get_blocks(call: Call) -> web.StreamResponse:
    """Stream a CAR without roots of the blocks that were asked for."""
    params = call.params
    exports = call.services.exports
    return await _stream(
        call, exports.blocks(params["did"], params["cids"], principal=call.principal)
    )


@routes.method("com.atproto.sync.getRecord", auth=Auth.OPTIONAL, subject=REPO)
async def get_record(call: Call) -> web.StreamResponse:
    """Return a CAR that proves a record, or that there is none."""
    params = call.params
    car = await call.services.exports.record_proof(
        params["did"], params["collection"], params["rkey"], principal=call.principal
    )
    return web.Response(body=car, content_type=MEDIA_TYPE)


@routes.method("com.atproto.sync.getLatestCommit", auth=Auth.OPTIONAL, subject=REPO)
async def get_latest_commit(call: Call) -> Json:
    """Return commit CID and rev of a repo."""
    commit, rev = await call.services.exports.head(call.params["did"], principal=call.principal)
    return {"cid": str(commit), "rev": rev}


@routes.method("com.atproto.sync.getHead", auth=Auth.OPTIONAL, subject=REPO_HEAD)
async def get_head(call: Call) -> Json:
    """Return the commit CID of a repo; the old name of getLatestCommit."""
    did = call.params["did"]
    try:
        commit, _rev = await call.services.exports.head(did, principal=call.principal)
    except RequestError as error:
        if error.name == "RepoNotFound":
            raise RequestError("HeadNotFound", f"Could not find root for DID: {did}") from error
        raise
    return {"root": str(commit)}


@routes.method("com.atproto.sync.getRepoStatus", auth=Auth.NONE, subject=REPO_STATUS)
async def get_repo_status(call: Call) -> Json:
    """Return the state of an account, whatever it is."""
    found = await call.services.exports.status(call.params["did"])
    answer: dict[str, Json] = {"did": found.did, "active": found.active}
    if found.status is not None:
        answer["status"] = found.status.value
    if found.rev is not None:
        answer["rev"] = found.rev
    return answer


@routes.method("com.atproto.sync.listRepos", auth=Auth.NONE)
async def list_repos(call: Call) -> Json:
    """Return the repos of this host in the order of their creation."""
    params = call.params
    repos, cursor = await call.services.exports.list_repos(
        limit=params["limit"], cursor=params.get("cursor")
    )
    listed: list[Json] = []
    for repo in repos:
        entry: dict[str, Json] = {
            "did": repo.did,
            "head": str(repo.head),
            "rev": repo.rev,
            "active": repo.active,
        }
        if repo.status is not None:
            entry["status"] = repo.status.value
        listed.append(entry)
    answer: dict[str, Json] = {"repos": listed}
    if cursor is not None:
        answer["cursor"] = cursor
    return answer


@routes.method("com.atproto.sync.listReposByCollection", auth=Auth.NONE)
async def list_repos_by_collection(call: Call) -> Json:
    """Return active repos that have a record in a collection."""
    params = call.params
    dids, cursor = await call.services.hosting.list_repos_with(
        params["collection"], limit=params["limit"], cursor=params.get("cursor")
    )
    answer: dict[str, Json] = {"repos": [{"did": did} for did in dids]}
    if cursor is not None:
        answer["cursor"] = cursor
    return answer


@routes.method("com.atproto.sync.getHostStatus", auth=Auth.NONE)
async def get_host_status(call: Call) -> Json:
    """Say how this host is; others are not known here."""
    return _host(await call.services.hosting.status(call.params["hostname"]))


@routes.method("com.atproto.sync.listHosts", auth=Auth.NONE)
async def list_hosts(call: Call) -> Json:
    """Return the one host that is known here: this one."""
    found = await call.services.hosting.list_hosts(cursor=call.params.get("cursor"))
    return {"hosts": [_host(host) for host in found]}


@routes.method("com.atproto.sync.requestCrawl", auth=Auth.NONE)
async def request_crawl(call: Call) -> None:
    """Take note of a host that wants to be read, and forget it: this server reads none."""


@routes.method("com.atproto.sync.notifyOfUpdate", auth=Auth.NONE)
async def notify_of_update(call: Call) -> None:
    """Take note of news elsewhere, and forget it: this server reads no other host."""


@routes.method("com.atproto.sync.listBlobs", auth=Auth.OPTIONAL, subject=REPO)
async def list_blobs(call: Call) -> Json:
    """Return CIDs of the blobs that the records of a repo refer to."""
    params = call.params
    found, cursor = await call.services.blobs.list_stored(
        params["did"],
        since=params.get("since"),
        cursor=params.get("cursor"),
        limit=params["limit"],
        principal=call.principal,
    )
    answer: dict[str, Json] = {"cids": [str(cid) for cid in found]}
    if cursor is not None:
        answer["cursor"] = cursor
    return answer


@routes.method("com.atproto.sync.getBlob", auth=Auth.OPTIONAL, subject=REPO)
async def get_blob(call: Call) -> web.StreamResponse:
    """Return a blob, or the part of it that a Range header asks for (XRPC-87)."""
    params = call.params
    blob = await call.services.blobs.open(params["did"], params["cid"], principal=call.principal)
    cid = str(blob.key.cid)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{cid}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Content-Type": blob.mime_type,
        "ETag": f'"{cid}"',
        "X-Content-Type-Options": "nosniff",
    }
    if headers["ETag"] in call.request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    if call.request.method != "HEAD" and (url := await call.services.blobs.presign(blob)):
        return web.Response(status=307, headers={"Location": url, "Cache-Control": "no-store"})
    start, end = _parse_range(call.request.headers.get("Range"), blob.size)
    if start >= end and blob.size > 0:
        limits = {"Content-Range": f"bytes */{blob.size}"}
        raise RequestError("InvalidRequest", "Range not satisfiable", 416, headers=limits)
    is_part = end - start < blob.size
    if is_part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size}"
    status = 206 if is_part else 200
    if blob.content is not None:
        return web.Response(body=blob.content[start:end], status=status, headers=headers)
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = end - start
    await response.prepare(call.request)
    if call.request.method != "HEAD":
        async for chunk in call.services.blobs.read(blob, start, end - start):
            await response.write(chunk)
    await response.write_eof()
    return response


def _host(found: HostStatus) -> dict[str, Json]:
    return {
        "hostname": found.hostname,
        "seq": found.seq,
        "accountCount": found.account_count,
        "status": found.status,
    }


def _parse_range(header: str | None, size: int) -> tuple[int, int]:
    """Return start and end of the part that is asked for.

    A header that is malformed or asks for several parts counts as none; a part that lies outside
    comes back empty.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match.group() == "bytes=-":
        return 0, size
    first, last = match.groups()
    if not first:
        return max(size - int(last), 0), size
    if last and int(last) < int(first):
        return 0, size
    return int(first), min(int(last) + 1, size) if last else size


async def _stream(
    call: Call, opened: AbstractAsyncContextManager[AsyncIterator[bytes]]
) -> web.StreamResponse:
    """Send a CAR piece by piece. A refusal comes before the first byte of the answer."""
    async with opened as chunks:
        response = web.StreamResponse(headers={"Content-Type": MEDIA_TYPE})
        await response.prepare(call.request)
        if call.request.method != "HEAD":
            async for chunk in chunks:
                await response.write(chunk)
        await response.write_eof()
        return response
