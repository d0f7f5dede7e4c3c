"""Identities for tests: keys, genesis operations and documents."""

from dataclasses import dataclass

from pds.protocol.keys import Signer, generate_secret, make_signer
from pds.protocol.plc import PlcOperation, did_for_genesis, sign_genesis
from pds.protocol.syntax import Did, Handle, parse_handle


@dataclass(frozen=True)
class Person:
    """A did:plc identity with all its keys in the test's hands."""

    did: Did
    handle: Handle
    rotation: Signer
    signing: Signer
    genesis: PlcOperation


def make_person(name: str, *, domain: str = "example.com", pds: str = "https://pds.test") -> Person:
    """Make an identity that depends on its name only."""
    rotation = make_signer("k256", generate_secret("k256", name.encode().ljust(32, b"r")))
    signing = make_signer("k256", generate_secret("k256", name.encode().ljust(32, b"s")))
    handle = parse_handle(f"{name}.{domain}")
    genesis = sign_genesis(
        rotation,
        rotation_keys=[rotation.public_key.did_key],
        signing_key=signing.public_key.did_key,
        handle=handle,
        pds_endpoint=pds,
    )
    return Person(did_for_genesis(genesis), handle, rotation, signing, genesis)
