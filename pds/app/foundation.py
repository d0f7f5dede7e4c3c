"""What services stand on: database, keys, clock, outbound clients, identity.

The clock is believed for the opening of the database alone (nothing is numbered in it); after that
it starts anew, with what other hosts say.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import pds
from pds.app.blobstores import open_blobstore
from pds.app.database import make_engine
from pds.app.options import TimeSource
from pds.blobstore.base import BlobStore
from pds.config import Config
from pds.errors import ConfigError, RemoteError
from pds.identity.cache import CacheTimes
from pds.identity.did_plc import PlcClient
from pds.identity.did_web import DidWebResolver
from pds.identity.handle import HandleResolver, HandleResolverSettings
from pds.identity.resolver import IdentityResolver, IdentityStore, ResolverSettings
from pds.net.dns import DnsClient, DnsSettings
from pds.net.http import GuardedClient, HttpSettings, TrustedClient
from pds.protocol.keys import Signer, make_signer
from pds.services.identity_store import SavedIdentities
from pds.store.base import ThreadedEngine
from pds.store.clock import CheckedClock
from pds.store.keystore import Keystore, knows_master_key, load_master_key, parse_master_key
from pds.store.takeover import check_takeover

MASTER_KEY_FILE: Final = "master-key"
ASK_TIMEOUT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Foundation:
    """What services stand on.

    Calls on behalf of users have clients of their own: users who keep all connections of those busy
    must not stop sign-ups and look-ups.
    """

    config: Config
    engine: ThreadedEngine
    clock: CheckedClock
    time: TimeSource
    blobstore: BlobStore
    keystore: Keystore
    trusted: TrustedClient
    guarded: GuardedClient
    proxy_trusted: TrustedClient
    proxy_guarded: GuardedClient
    plc: PlcClient
    resolver: IdentityResolver
    rotation_signer: Signer


def name_node() -> str:
    """Name this process among all that share a database, so that an operator recognizes it."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


async def lay_foundation(
    config: Config, stack: AsyncExitStack, *, time: TimeSource | None = None
) -> Foundation:
    """Open the database and make the clients; `stack` closes all of it.

    Raises: ConfigError, StoreError.
    """
    time = time or TimeSource()
    user_agent = f"Freehold/{pds.__version__} (+{config.public_url})"
    dates = References()
    to_named = HttpSettings.trusted(
        user_agent=user_agent,
        allow_private=True,  # The operator named these; they may be neighbours.
        idle_timeout_s=config.outbound.proxy_body_timeout_s,
    )
    to_strangers = HttpSettings.guarded(
        user_agent=user_agent,
        unsafe=config.is_unguarded,
        idle_timeout_s=config.outbound.proxy_body_timeout_s,
        small_max_bytes=config.outbound.fetch_max_bytes,
    )
    trusted = TrustedClient(to_named, on_date=dates.note)
    guarded = GuardedClient(to_strangers)
    proxy_trusted, proxy_guarded = TrustedClient(to_named), GuardedClient(to_strangers)
    for client in (trusted, guarded, proxy_trusted, proxy_guarded):
        stack.push_async_callback(client.close)
    dates.client = trusted
    plc_url = config.identity.plc_url
    plc = PlcClient(config.identity.plc_read_url or plc_url, trusted, write_url=plc_url)
    clock = CheckedClock(dates.ask, read=time.read)
    await clock.start(last_seq=0)  # Believed for the opening alone: nothing is numbered in it.
    engine = make_engine(config, clock)
    await engine.start()
    stack.push_async_callback(engine.close)
    is_new = not await engine.read("keys.known", knows_master_key)
    keystore = open_keystore(config, is_new=is_new)
    await engine.transact("keys.check", keystore.check_master_key)
    await engine.read("takeover.check", check_takeover)
    blobstore = await open_blobstore(config, stack, is_alone=not config.data.is_shared)
    dates.urls = _reference_urls(config)
    resolver = _build_resolver(config, plc, guarded, SavedIdentities(engine), time)
    stack.push_async_callback(resolver.close)
    return Foundation(
        config=config,
        engine=engine,
        clock=clock,
        time=time,
        blobstore=blobstore,
        keystore=keystore,
        trusted=trusted,
        guarded=guarded,
        proxy_trusted=proxy_trusted,
        proxy_guarded=proxy_guarded,
        plc=plc,
        resolver=resolver,
        rotation_signer=_rotation_signer(config),
    )


class References:
    """Asks the PLC directory and the relays what time it is, by their Date headers.

    Without `urls` it asks nobody.
    """

    def __init__(self) -> None:
        self.client: TrustedClient | None = None
        self.urls: Sequence[str] = ()
        self._dates_us: list[int] = []

    def note(self, host: str, date_us: int) -> None:
        """Take down the Date header of a fresh answer."""
        self._dates_us.append(date_us)

    async def ask(self) -> Sequence[int]:
        """Return the times that were told, within a few seconds."""
        if self.client is None or not self.urls:
            return ()
        self._dates_us.clear()
        asked = (self._ask_one(self.client, url) for url in self.urls)
        await asyncio.gather(*asked)
        return tuple(self._dates_us)

    async def _ask_one(self, client: TrustedClient, url: str) -> None:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await client.get_bytes(url)
        except (RemoteError, TimeoutError):
            return  # Who does not answer is not counted; an error page has a Date too.


def _reference_urls(config: Config) -> list[str]:
    relays = (f"{url.rstrip('/')}/xrpc/_health" for url in config.federation.crawlers)
    return [f"{config.identity.plc_url}/_health", *relays]


def open_keystore(config: Config, *, is_new: bool = False) -> Keystore:
    """Return the keystore under the configured master key. Raises: ConfigError.

    `is_new` says that no key was ever used with this database, so that one may be made.
    """
    return Keystore(_master_key(config, is_new))


def _master_key(config: Config, is_new: bool) -> bytes:
    if config.data.master_key:
        return parse_master_key(config.data.master_key)
    file = config.data.directory / MASTER_KEY_FILE
    # A lost key file must not be replaced: what it opened would be lost without a word.
    return load_master_key(file, entropy=secrets.token_bytes(32) if is_new else None)


def _rotation_signer(config: Config) -> Signer:
    text = config.secrets.plc_rotation_key
    if not text:
        raise ConfigError("PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX is missing")
    return make_signer("k256", bytes.fromhex(text))


def _build_resolver(
    config: Config,
    plc: PlcClient,
    guarded: GuardedClient,
    store: IdentityStore,
    time: TimeSource,
) -> IdentityResolver:
    identity = config.identity
    dev = config.host.dev_mode or config.is_local
    timeout_s = identity.resolver_timeout_s
    backup = identity.backup_nameservers
    handles = HandleResolver(
        guarded,
        DnsClient(DnsSettings(timeout_s=timeout_s)),
        backup_dns=DnsClient(DnsSettings(nameservers=backup, timeout_s=timeout_s))
        if backup
        else None,
        settings=HandleResolverSettings(timeout_s=timeout_s, dev=dev),
    )
    times = CacheTimes(stale_s=identity.cache_stale_s, max_s=identity.cache_max_s)
    return IdentityResolver(
        plc=plc,
        web=DidWebResolver(guarded, dev=dev),
        handles=handles,
        settings=ResolverSettings(dids=times, dev=dev),
        store=store,
        now_s=time.now_s,
    )
