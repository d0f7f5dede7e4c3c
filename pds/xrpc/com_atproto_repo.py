"""com.atproto.repo.*: write and read records, describe a repo, take in a whole one."""

from dataclasses import replace
from typing import Any, Final, cast

from pds.errors import ProtocolError, RequestError
from pds.protocol.cbor import link_text
from pds.protocol.cid import Cid, parse_cid
from pds.protocol.data import Json
from pds.protocol.repo import UNSET, Action, Unset
from pds.services.principal import Principal
from pds.services.repos import RecordWrite, RepoUnknown, WriteOutcome, WriteResult
from pds.xrpc.access import RECORD, RECORDS, REPO, Allows
from pds.xrpc.auth import Auth, authenticate
from pds.xrpc.proxy import proxy_call
from pds.xrpc.server import Answer, Call, MethodTable

routes: Final = MethodTable()

_ACTIONS: Final[dict[str, tuple[Action, str]]] = {
    "com.atproto.repo.applyWrites#create": ("create", "createResult"),
    "com.atproto.repo.applyWrites#update": ("update", "updateResult"),
    "com.atproto.repo.applyWrites#delete": ("delete", "deleteResult"),
}


@routes.method("com.atproto.repo.createRecord", auth=Auth.SESSION, allows=Allows.ACTIVE)
async def create_record(call: Call) -> Json:
    """Create one record; a second like or follow of the same subject replaces the first."""
    body = _body(call)
    aid = await call.services.repos.check_owner(body["repo"], _principal(call))
    write = RecordWrite("create", body["collection"], body.get("rkey"), body["record"])
    result = await call.services.repos.write(
        aid,
        [write],
        swap_commit=_cid(body, "swapCommit"),
        validate=body.get("validate"),
        replace_duplicates=True,
    )
    return _written(result)


@routes.method("com.atproto.repo.putRecord", auth=Auth.SESSION, allows=Allows.ACTIVE)
async def put_record(call: Call) -> Json:
    """Create or replace one record; the same content again makes no commit."""
    body = _body(call)
    aid = await call.services.repos.check_owner(body["repo"], _principal(call))
    write = RecordWrite(
        "put", body["collection"], body["rkey"], body["record"], swap=_swap_record(body)
    )
    result = await call.services.repos.write(
        aid, [write], swap_commit=_cid(body, "swapCommit"), validate=body.get("validate")
    )
    return _written(result)


@routes.method("com.atproto.repo.deleteRecord", auth=Auth.SESSION, allows=Allows.ACTIVE)
async def delete_record(call: Call) -> Json:
    """Delete one record; one that is not there is no error."""
    body = _body(call)
    aid = await call.services.repos.check_owner(body["repo"], _principal(call))
    write = RecordWrite("delete", body["collection"], body["rkey"], swap=_swap_record(body))
    result = await call.services.repos.delete(aid, write, swap_commit=_cid(body, "swapCommit"))
    return _commit(result)


@routes.method("com.atproto.repo.applyWrites", auth=Auth.SESSION, allows=Allows.ACTIVE)
async def apply_writes(call: Call) -> Json:
    """Carry out a batch of writes as one commit."""
    body = _body(call)
    aid = await call.services.repos.check_owner(body["repo"], _principal(call))
    asked = [(_ACTIONS[item["$type"]], item) for item in body["writes"]]
    writes = [
        RecordWrite(action, item["collection"], item.get("rkey"), item.get("value"))
        for (action, _result), item in asked
    ]
    result = await call.services.repos.write(
        aid, writes, swap_commit=_cid(body, "swapCommit"), validate=body.get("validate")
    )
    results: list[Json] = [
        {"$type": f"com.atproto.repo.applyWrites#{kind}", **_outcome(outcome)}
        for ((_action, kind), _item), outcome in zip(asked, result.outcomes, strict=True)
    ]
    return {**_commit(result), "results": results}


@routes.method("com.atproto.repo.getRecord", auth=Auth.NONE, subject=RECORD)
async def get_record(call: Call) -> Answer:
    """Return one record; those of other hosts are asked of the AppView, for signed-in callers."""
    params = call.params
    try:
        return await call.services.repos.get_record(
            params["repo"], params["collection"], params["rkey"], cid=params.get("cid")
        )
    except RepoUnknown as error:
        if "Authorization" not in call.request.headers:
            uri = f"at://{params['repo']}/{params['collection']}/{params['rkey']}"
            raise RequestError("RecordNotFound", f"Could not locate record: {uri}") from error
    principal, token = await authenticate(
        Auth.SESSION, request=call.request, services=call.services, nsid=call.nsid
    )
    return await proxy_call(replace(call, principal=principal, token=token))


@routes.method("com.atproto.repo.listRecords", auth=Auth.NONE, subject=RECORDS)
async def list_records(call: Call) -> bytes:
    """Return a page of a collection, newest rkey first."""
    params = call.params
    return await call.services.repos.list_records(
        params["repo"],
        params["collection"],
        limit=params["limit"],
        cursor=params.get("cursor"),
        reverse=params.get("reverse", False),
    )


@routes.method("com.atproto.repo.describeRepo", auth=Auth.NONE, subject=REPO)
async def describe_repo(call: Call) -> Json:
    """Say whose repo it is and which collections it has."""
    found = await call.services.repos.describe(call.params["repo"])
    return {
        "handle": found.handle,
        "did": found.did,
        "didDoc": found.did_document,
        "collections": list(found.collections),
        "handleIsCorrect": found.handle_is_correct,
    }


@routes.method("com.atproto.repo.uploadBlob", auth=Auth.SESSION_OR_SERVICE)
async def upload_blob(call: Call) -> Json:
    """Take in a blob; it stays temporary until a record refers to it."""
    principal = _principal(call)
    if principal.aid is None or call.body is None:
        raise RequestError("AccountNotFound", "Account not found", 403)
    blob = await call.services.blobs.upload(
        principal.aid,
        aiter(call.body),
        declared_type=call.body.content_type,
        declared_size=call.body.content_length,
        replay=principal.replay,
    )
    return {"blob": blob}


@routes.method("com.atproto.repo.listMissingBlobs", auth=Auth.SESSION)
async def list_missing_blobs(call: Call) -> Json:
    """Return blobs that records of the caller refer to and that were never uploaded here."""
    principal = _principal(call)
    if principal.aid is None:
        raise RequestError("AccountNotFound", "Account not found", 403)
    found, cursor = await call.services.blobs.list_missing(
        principal.aid, cursor=call.params.get("cursor"), limit=call.params["limit"]
    )
    missing: list[Json] = [{"cid": str(blob.cid), "recordUri": uri} for uri, blob in found]
    answer: dict[str, Json] = {"blobs": missing}
    if cursor is not None:
        answer["cursor"] = cursor
    return answer


@routes.method("com.atproto.repo.importRepo", auth=Auth.FULL)
async def import_repo(call: Call) -> None:
    """Take in the whole repo of an account that moves in (ACC-52)."""
    if call.body is None:
        raise RequestError("InvalidRequest", "A request body is expected but none was provided")
    await call.services.repo_imports.import_repo(_principal(call), aiter(call.body))


def _body(call: Call) -> dict[str, Any]:
    return cast("dict[str, Any]", call.input)


def _principal(call: Call) -> Principal:
    if call.principal is None:
        raise RequestError("AuthMissing", "Authentication Required", 401)
    return call.principal


def _cid(body: dict[str, Any], name: str) -> Cid | None:
    text = body.get(name)
    if text is None:
        return None
    try:
        return parse_cid(text)
    except ProtocolError as error:
        raise RequestError("InvalidRequest", f"Invalid {name}: {error}") from error


def _swap_record(body: dict[str, Any]) -> Cid | Unset | None:
    """Read `swapRecord`: missing is no expectation, null is "must not exist" (LEX-111)."""
    return _cid(body, "swapRecord") if "swapRecord" in body else UNSET


def _commit(result: WriteResult) -> dict[str, Json]:
    if result.commit is None:
        return {}
    return {"commit": {"cid": link_text(result.commit), "rev": result.rev}}


def _outcome(outcome: WriteOutcome) -> dict[str, Json]:
    if outcome.cid is None:
        return {}
    answer: dict[str, Json] = {"uri": outcome.uri, "cid": link_text(outcome.cid)}
    if outcome.validation_status is not None:
        answer["validationStatus"] = outcome.validation_status
    return answer


def _written(result: WriteResult) -> Json:
    return {**_outcome(result.outcomes[0]), **_commit(result)}
