"""An account goes from our archive to the reference PDS with its owner's key; nobody else helps."""

import asyncio
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import aiohttp

from pds.cli import run
from pds.cli.recovery_kit import new_signer, write_kit
from pds.services.audit import Order
from tests.fakes.plc import running_plc
from tests.independent import check_export
from tests.interop.reference import running_reference
from tests.scenarios.conftest import host_in
from tests.scenarios.test_archives import PICTURE, archives_of, person_with_everything
from tests.support_client import Client


async def test_the_reference_pds_takes_an_account_whose_host_is_gone(tmp_path: Path) -> None:
    """ACC-20, ACC-50, ACC-52: createAccount, importRepo, uploadBlob, activateAccount over there."""
    path, kit = tmp_path / "alice.tar", tmp_path / "kit.txt"
    signer = new_signer("k256")
    owner = signer.public_key.did_key
    async with running_plc() as plc, aiohttp.ClientSession() as http:
        async with host_in(tmp_path / "ours", plc=plc.directory) as ours:
            alice, cid = await person_with_everything(ours)
            did = alice.did
            write_kit(kit, signer, did=did, handle="alice.test", host="ours")
            keys = ours.server.services.keeping.recovery_keys
            await keys.add(did, owner, order=Order("cli:tests"))
            await archives_of(ours).create(did, path, with_preferences=True)
        started = running_reference(
            tmp_path / "reference",
            plc.url.replace("127.0.0.1", "localhost"),
            PDS_BSKY_APP_VIEW_URL="http://localhost:9",
            PDS_BSKY_APP_VIEW_DID="did:web:appview.example",
        )
        url = await asyncio.to_thread(started.__enter__)
        try:
            code, told = await rescue(
                url, "--archive", str(path), "--kit", str(kit), "--handle", "alice2.test",
                "--email", "a@example.test", "--password-stdin", "--plc", plc.url,
            )  # fmt: skip
            assert code == 0, told
            client = Client(http, url)
            session = await client.post(
                "com.atproto.server.createSession",
                identifier="alice2.test",
                password="a long password",
            )
            there = client.with_token(session["accessJwt"])
            status = await there.get("com.atproto.server.checkAccountStatus")
            assert (status["activated"], status["validDid"]) == (True, True)
            assert (status["indexedRecords"], status["importedBlobs"]) == (5, 1)
            kept = await there.get("app.bsky.actor.getPreferences")
            assert kept["preferences"][0]["enabled"] is True
            got = await client.get("com.atproto.sync.getBlob", did=did, cid=cid)
            assert got == PICTURE
            state = plc.directory.get_state(did)
            assert state is not None
            assert state.rotation_keys[0] == owner
            await there.post(  # The reference signs what it has taken in with the next write.
                "com.atproto.repo.createRecord",
                repo=did,
                collection="app.bsky.feed.post",
                record={"text": "home again", "createdAt": "2026-01-02T03:04:05.000Z"},
            )
            car = await client.get("com.atproto.sync.getRepo", did=did)
            key = state.verification_methods["atproto"]
            assert len(check_export(car, did=did, did_key=key)) == 6
        finally:
            await asyncio.to_thread(started.__exit__, None, None, None)


async def rescue(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    real, sys.stdin = sys.stdin, io.StringIO("a long password\n")
    try:
        with redirect_stdout(out), redirect_stderr(out):
            code = await asyncio.to_thread(run, ["rescue", "to", *arguments])
    finally:
        sys.stdin = real
    return code, out.getvalue()
