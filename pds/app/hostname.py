"""Makes the service that tells identities another name of this host."""

from pds.app.foundation import Foundation
from pds.net.xrpc_client import XrpcClient
from pds.services.handles import HandlePolicy
from pds.services.hostname_change import HostnameChange
from pds.services.identity_journal import IdentityJournal


def build_hostname_change(
    base: Foundation, handles: HandlePolicy, journal: IdentityJournal
) -> HostnameChange:
    """Make the service."""
    config = base.config
    client = XrpcClient(base.trusted)

    async def ask_did(url: str) -> str | None:
        answer = await client.query(url, "com.atproto.server.describeServer")
        did = answer.get("did")
        return did if isinstance(did, str) else None

    return HostnameChange(
        engine=base.engine,
        plc=base.plc,
        resolver=base.resolver,
        journal=journal,
        handles=handles,
        rotation_signer=base.rotation_signer,
        ask_did=ask_did,
        public_url=config.public_url,
        former_urls=config.former_urls,
        service_did=config.service_did,
        settings=config.hostname_change,
        monotonic=base.time.boot_s,
    )
