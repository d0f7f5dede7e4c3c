"""People who come from a host that is not there: their identity and keys are the test's own."""

import io
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from pds.protocol.keys import Signer, make_signer
from pds.protocol.plc import did_for_genesis, sign_genesis, sign_operation
from pds.protocol.service_auth import sign_service_token
from pds.protocol.syntax import Did, Handle, Nsid
from pds.protocol.tid import encode_tid
from tests.support_client import Client, Person, XrpcError
from tests.support_repo import ForeignRepo, make_repo

OLD_HOST = "https://old.example"
CREATE_ACCOUNT = Nsid("com.atproto.server.createAccount")
CAR = "application/vnd.ipld.car"


@dataclass
class Newcomer:
    """Somebody with a did:plc, all keys in hand."""

    did: Did
    handle: str
    signer: Signer
    rotation: Signer
    plc_url: str

    @classmethod
    async def born(cls, http: aiohttp.ClientSession, plc_url: str, handle: str) -> "Newcomer":
        """Register a new identity that points to a host that is gone."""
        signer = make_signer("k256", secrets.token_bytes(32))
        rotation = make_signer("k256", secrets.token_bytes(32))
        genesis = sign_genesis(
            rotation,
            rotation_keys=[rotation.public_key.did_key],
            signing_key=signer.public_key.did_key,
            handle=Handle(handle),
            pds_endpoint=OLD_HOST,
        )
        newcomer = cls(did_for_genesis(genesis), handle, signer, rotation, plc_url)
        await newcomer._submit(http, genesis.to_json())
        return newcomer

    async def _submit(self, http: aiohttp.ClientSession, operation: Mapping[str, Any]) -> None:
        async with http.post(f"{self.plc_url}/{self.did}", json=operation) as answer:
            assert answer.status == 200, await answer.text()

    async def move_identity(self, person: Person) -> None:
        """Let the identity name the new host, as its owner signs it."""
        http = person.client.http
        wanted = await person.client.get("com.atproto.identity.getRecommendedDidCredentials")
        async with http.get(f"{self.plc_url}/{self.did}/log/audit") as answer:
            last = (await answer.json())[-1]
        fields = {**last["operation"], "prev": last["cid"], **wanted}
        fields["rotationKeys"] = [self.rotation.public_key.did_key, *wanted["rotationKeys"]]
        await self._submit(http, sign_operation(fields, self.rotation).to_json())

    def repo(self, records: Mapping[str, Any], *, ago_s: float = 60) -> ForeignRepo:
        """Make a repo of these records, as the old host has it."""
        rev = encode_tid(time.time_ns() // 1000 - round(ago_s * 1_000_000), 1)
        return make_repo(self.did, self.signer, records, rev=rev)

    async def sign_up(self, client: Client) -> Person:
        """Open the account at the new host, deactivated."""
        server = await client.get("com.atproto.server.describeServer")
        now = int(time.time())
        token = sign_service_token(
            self.signer,
            iss=self.did,
            aud=server["did"],
            lxm=CREATE_ACCOUNT,
            iat=now,
            exp=now + 60,
            jti=secrets.token_hex(8),
        )
        password = f"{self.handle}-password"
        answer = await client.with_token(token).post(
            CREATE_ACCOUNT,
            handle=self.handle,
            did=self.did,
            email=f"{self.handle.partition('.')[0]}@example.test",
            password=password,
        )
        return Person(
            self.did,
            self.handle,
            password,
            answer["refreshJwt"],
            client.with_token(answer["accessJwt"]),
        )


async def import_car(client: Client, car: Any, **headers: str) -> Any:
    """Send a CAR: bytes with their length, or a stream without. Raises: XrpcError."""
    return await client.call(
        "POST",
        "com.atproto.repo.importRepo",
        data=io.BytesIO(car) if isinstance(car, bytes) else car,
        headers={"Content-Type": CAR, **headers},
        timeout=aiohttp.ClientTimeout(600),
    )


async def refusal(call: Any) -> XrpcError:
    """Await a call that must be refused."""
    try:
        answer = await call
    except XrpcError as error:
        return error
    raise AssertionError(f"was not refused: {json.dumps(answer, default=str)[:300]}")
