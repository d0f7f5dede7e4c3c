"""The TypeScript packages against a real server: client, firehose consumer, repository verifier."""

import asyncio
import json
import random
from pathlib import Path

import aiohttp
import libipld

from tests.fakes.plc import running_plc
from tests.independent import check_export, cid_text
from tests.interop.node import NodeProject, node_project
from tests.support_live import LiveServer
from tests.support_load import Writer, call

PACKAGES = [
    "@atproto/api@0.21.0",
    "@atproto/sync@0.4.11",
    "@atproto/repo@0.10.14",
    "@atproto/identity@0.5.14",
    "@atproto/lex-data@0.1.9",
    "@atproto/xrpc-server@0.13.2",
]
APPVIEW_DID = "did:web:appview.example"


async def run(script: str, *args: str) -> str:
    def work() -> str:
        return project().run(script, *args, timeout_s=600)

    return await asyncio.to_thread(work)


def project() -> NodeProject:
    return node_project("clients", PACKAGES, min_node=22)


async def test_typescript_client_lives_a_day(live_server: LiveServer) -> None:
    result = json.loads(await run("client.mjs", live_server.url, "ts-alice.test"))
    records = check_export(
        await live_server.export(result["did"]),
        did=result["did"],
        did_key=await live_server.signing_key(result["did"]),
    )
    collections = sorted({path.split("/")[0] for path in records})
    assert collections == ["app.bsky.actor.profile", "app.bsky.feed.post", "app.bsky.feed.repost"]


async def test_typescript_consumer_verifies_every_event(live_server: LiveServer) -> None:
    writers = [Writer(live_server.url, f"ts{n}.test", random.Random(n)) for n in range(3)]
    async with aiohttp.ClientSession() as session:
        for writer in writers:
            await writer.sign_up(session)
        for _ in range(60):
            for writer in writers:
                await writer.step(session)
        last = await newest_seq(session, live_server, writers[0])
    lines = (
        await run(
            "firehose.mjs",
            live_server.url.replace("http", "ws", 1),
            live_server.plc_url,
            "0",
            str(last),
        )
    ).splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)
    state: dict[str, dict[str, str]] = {writer.did: {} for writer in writers}
    for event in events:
        if "uri" not in event or event["did"] not in state:
            continue
        path = event["uri"].split("/", 3)[3]
        if event["kind"] == "delete":
            del state[event["did"]][path]
        else:
            state[event["did"]][path] = event["cid"]
    for writer in writers:
        assert state[writer.did] == writer.records
    kinds = {event["kind"] for event in events}
    assert kinds >= {"identity", "account", "sync", "create", "update", "delete"}


async def newest_seq(session: aiohttp.ClientSession, server: LiveServer, writer: Writer) -> int:
    """Make one more write and return the number of its event."""
    url = f"{server.url}/xrpc/com.atproto.sync.subscribeRepos"
    async with session.ws_connect(url, max_msg_size=0) as stream:
        body = {
            "repo": writer.did,
            "collection": "com.example.note",
            "rkey": "last",
            "record": {"$type": "com.example.note"},
            "validate": False,
        }
        answer = await call(
            session, server.url, "com.atproto.repo.createRecord", token=writer.token, body=body
        )
        writer.records["com.example.note/last"] = answer["cid"]
        message = await stream.receive(timeout=60)
        seq: int = libipld.decode_dag_cbor_multi(message.data)[1]["seq"]
        return seq


async def test_typescript_verifier_accepts_exports_and_proofs(
    live_server: LiveServer, tmp_path: Path
) -> None:
    writer = Writer(live_server.url, "ts-export.test", random.Random(7))
    async with aiohttp.ClientSession() as session:
        await writer.sign_up(session)
        for _ in range(150):
            await writer.step(session)
        key = await live_server.signing_key(writer.did)
        car = await live_server.export(writer.did)
        (tmp_path / "repo.car").write_bytes(car)
        result = json.loads(
            await run("verify_car.mjs", writer.did, key, str(tmp_path / "repo.car"))
        )
        independent = check_export(car, did=writer.did, did_key=key)
        assert dict(result["records"]) == writer.records
        assert {path: cid_text(cid) for path, cid in independent.items()} == writer.records

        present = sorted(writer.records)[len(writer.records) // 2]
        for path, cid in ((present, writer.records[present]), ("com.example.note/none", "null")):
            collection, rkey = path.split("/")
            params = {"did": writer.did, "collection": collection, "rkey": rkey}
            url = f"{live_server.url}/xrpc/com.atproto.sync.getRecord"
            async with session.get(url, params=params) as answer:
                assert answer.status == 200
                (tmp_path / "proof.car").write_bytes(await answer.read())
            proof = json.loads(
                await run(
                    "verify_proof.mjs",
                    writer.did,
                    key,
                    collection,
                    rkey,
                    cid,
                    str(tmp_path / "proof.car"),
                )
            )
            assert proof == {"verified": 1, "unverified": 0}


async def test_typescript_appview_believes_what_is_proxied(tmp_path: Path) -> None:
    """Service tokens of the proxy are verified by the server package (XRPC-40, XRPC-65)."""
    async with running_plc() as plc:
        started = project().running("appview.mjs", APPVIEW_DID, plc.url)
        appview_url = await asyncio.to_thread(started.__enter__)
        try:
            server = LiveServer(
                tmp_path / "server",
                plc.url,
                PDS_BSKY_APP_VIEW_URL=appview_url,
                PDS_BSKY_APP_VIEW_DID=APPVIEW_DID,
            )
            await server.start()
            await ask_the_appview(server)
            assert await server.stop() == 0
        finally:
            await asyncio.to_thread(started.__exit__, None, None, None)


async def ask_the_appview(server: LiveServer) -> None:
    writer = Writer(server.url, "ts-proxied.test", random.Random(3))
    async with aiohttp.ClientSession() as session:
        await writer.sign_up(session)
        nsid = "app.bsky.feed.getTimeline"
        headers = {"Authorization": f"Bearer {writer.token}", "Cookie": "secret=1"}
        url = f"{server.url}/xrpc/{nsid}"
        async with session.get(url, params={"limit": "3"}, headers=headers) as answer:
            assert answer.headers["atproto-repo-rev"] == "3jzfcijpj2z2a"
            assert await answer.json() == {
                "iss": writer.did,
                "lxm": nsid,
                "path": f"/xrpc/{nsid}?limit=3",
                "cookie": None,
            }
        params = {"aud": "did:web:elsewhere.example", "lxm": nsid}
        foreign = await call(
            session,
            server.url,
            "com.atproto.server.getServiceAuth",
            token=writer.token,
            params=params,
        )
        appview = server.environment["PDS_BSKY_APP_VIEW_URL"]
        headers = {"Authorization": f"Bearer {foreign['token']}"}
        async with session.get(f"{appview}/xrpc/{nsid}", headers=headers) as answer:
            assert (await answer.json())["error"] == "BadJwtAudience"
