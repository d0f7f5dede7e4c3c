"""goat itself moves accounts between the reference PDS and ours, and is used day by day with ours.

What `test_migration.py` does call by call is done here by the program that people use, at the real
PLC directory server. goat copies all blobs that the old host lists, without their types, and names
none of the owner's rotation keys.

Spec: (ACC-20, ACC-40, ACC-41, ACC-50..ACC-59, ID-69, ID-70, REPO-92, XRPC-86)
"""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.interop.goat import Goat, GoatError, running_directory
from tests.interop.test_migration import (
    PASSWORD,
    PICTURES,
    Belongings,
    Home,
    World,
    belongings,
    check_events,
    running_world,
    settle,
    signing_key,
)
from tests.support_client import Person

SERVER = "com.atproto.server."
DID_KEY = re.compile(r"did:key:\w+")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_directory() as plc_url, running_world(tmp_path, plc_url) as world:
        yield world


async def login(world: World, folder: Path, person: Person) -> Goat:
    """Sign in with the DID, by way of the directory."""
    goat = Goat(folder, world.plc_url)
    await goat.run("account", "login", "-u", person.did, "-p", person.password)
    return goat


async def arrive(world: World, person: Person, new: Home, handle: str) -> Person:
    there = new.client(world.http)
    session = await there.post(SERVER + "createSession", identifier=person.did, password=PASSWORD)
    token = session["accessJwt"]
    return Person(person.did, handle, PASSWORD, session["refreshJwt"], there.with_token(token))


async def move(world: World, goat: Goat, person: Person, new: Home, handle: str) -> Person:
    """Have goat move an account; return it at its new host.

    The first attempt breaks off at the signature. Our hosts let the same command go on from there;
    the reference does not.
    """
    email = (await person.client.get(SERVER + "getSession"))["email"]
    (old,) = [home for home in world.homes if home.url == person.client.url]
    await goat.run("account", "plc", "request-token")
    code = await old.mailed_code(email)
    command = [
        *("account", "migrate", "--pds-host", new.url, "--new-handle", handle),
        *("--new-password", PASSWORD, "--new-email", email, "--plc-token"),
    ]
    if new is not world.reference:
        with pytest.raises(GoatError, match="failed requesting PLC operation signature"):
            await goat.run(*command, "AAAAA-BBBBB")
    await goat.run(*command, code)
    return await arrive(world, person, new, handle)


async def check_move(world: World, person: Person, before: Belongings, old: Home, new: Home) -> str:
    """Hold what is there after a move against what was; return the key that signs there."""
    data = await world.plc_data(person.did)
    assert data["services"]["atproto_pds"]["endpoint"] == new.url
    assert data["alsoKnownAs"] == [f"at://{person.handle}"]
    key: str = data["verificationMethods"]["atproto"]
    # The reference keeps the commit as it was imported, under the old key, until the next write.
    if new is world.reference:
        await person.post("here I am")
        after = await belongings(person, key)
        assert before.records.items() < after.records.items()
        assert (after.blobs, after.preferences) == (before.blobs, before.preferences)
    else:
        assert await belongings(person, key) == before
    status = f"{old.url}/xrpc/com.atproto.sync.getRepoStatus"
    async with world.http.get(status, params={"did": person.did}) as left:
        assert (await left.json())["status"] == "deactivated"
    return key


async def test_goat_moves_accounts_both_ways(world: World, tmp_path: Path) -> None:
    reference, ours, other = world.reference, world.ours, world.other
    person = await settle(world, reference, "mover.test")
    before = await belongings(person, await signing_key(world, person.did))
    assert len(before.blobs) == len(PICTURES)
    goat = await login(world, tmp_path / "goat-1", person)
    person = await move(world, goat, person, ours, "mover-a.test")
    key = await check_move(world, person, before, reference, ours)
    await check_events(world, ours, person, key)

    before = await belongings(person, key)
    goat = await login(world, tmp_path / "goat-2", person)
    person = await move(world, goat, person, other, "mover-b.test")
    key = await check_move(world, person, before, ours, other)
    await check_events(world, other, person, key)

    before = await belongings(person, key)
    goat = await login(world, tmp_path / "goat-home", person)
    person = await move(world, goat, person, ours, "mover-a.test")
    key = await check_move(world, person, before, other, ours)
    await check_events(world, ours, person, key)

    person = await settle(world, ours, "leaver.test")
    before = await belongings(person, await signing_key(world, person.did))
    goat = await login(world, tmp_path / "goat-3", person)
    person = await move(world, goat, person, reference, "leaver-a.test")
    await check_move(world, person, before, ours, reference)
    goat = await login(world, tmp_path / "goat-4", person)
    assert f"Host: {reference.url}" in await goat.run("account", "check-auth")

    await move_by_hand(world, tmp_path)


async def move_by_hand(world: World, folder: Path) -> None:
    """Move from the reference to ours by goat's single commands, an own rotation key in front."""
    reference, ours = world.reference, world.ours
    person = await settle(world, reference, "walker.test")
    before = await belongings(person, await signing_key(world, person.did))
    old = await login(world, folder / "goat-old", person)
    described = await old.json("pds", "describe", ours.url)
    token = await old.run(
        *("account", "service-auth", "--aud", described["did"]),
        *("--lxm", SERVER + "createAccount"),
    )
    new = Goat(folder / "goat-new", world.plc_url)
    await new.run(
        *("account", "create", "--pds-host", ours.url, "--handle", "walker-a.test"),
        *("--password", PASSWORD, "--email", "walker@example.test"),
        *("--existing-did", person.did, "--service-auth", token.strip()),
    )
    await new.run(
        *("account", "login", "--pds-host", ours.url, "-u", person.did, "-p", PASSWORD),
    )
    car = str(new.folder / "repo.car")
    await old.run("repo", "export", person.did, "-o", car)
    await new.run("repo", "import", car)
    missing = (await new.run("account", "missing-blobs")).split("\n")
    await old.run("blob", "export", person.did, "-o", str(new.folder / "blobs"))
    exported = sorted((new.folder / "blobs").iterdir())
    assert sorted(line.split("\t")[0] for line in missing if line) == [p.name for p in exported]
    for path in exported:
        await new.run("blob", "upload", str(path))
    assert await new.run("account", "missing-blobs") == ""
    preferences = await old.json("bsky", "prefs", "export")
    await new.run("bsky", "prefs", "import", new.write("preferences.json", preferences))

    operation = await new.json("account", "plc", "recommended")
    own = DID_KEY.findall(await new.run("key", "generate", "--type", "K-256"))
    operation["rotationKeys"] = [*own, *operation["rotationKeys"]]
    await old.run("account", "plc", "request-token")
    code = await reference.mailed_code("walker@example.test")
    unsigned = old.write("unsigned.json", operation)
    signed = await old.json("account", "plc", "sign", "--token", code, unsigned)
    await new.run("account", "plc", "submit", new.write("signed.json", signed))
    await new.run("account", "activate")
    await old.run("account", "deactivate")
    person = await arrive(world, person, ours, "walker-a.test")
    key = await check_move(world, person, before, reference, ours)
    assert (await world.plc_data(person.did))["rotationKeys"] == operation["rotationKeys"]
    await check_events(world, ours, person, key)
