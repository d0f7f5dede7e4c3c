"""A PLC directory, web hosts and DNS on loopback, and the clients that talk to them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from pds.identity.did_plc import PlcClient
from pds.identity.did_web import DidWebResolver
from pds.identity.handle import HandleResolver, HandleResolverSettings
from pds.identity.resolver import IdentityResolver, IdentityStore, ResolverSettings
from pds.net.http import GuardedClient, HttpSettings, TrustedClient
from tests.fakes.dns import FakeDns
from tests.fakes.plc import FakePlc, running_plc
from tests.fakes.web import FakeWeb, running_web

START_S = 1_790_000_000.0


@dataclass
class HandClock:
    """Time that passes when a test says so."""

    now: float = START_S

    def now_s(self) -> float:
        return self.now


@dataclass
class World:
    """Everything that identity resolution touches."""

    plc: FakePlc
    web: FakeWeb
    dns: FakeDns
    trusted: TrustedClient
    guarded: GuardedClient
    clock: HandClock = field(default_factory=HandClock)
    resolvers: list[IdentityResolver] = field(default_factory=list)

    def plc_client(self, *, write_url: str | None = None, timeout_s: float = 1.0) -> PlcClient:
        return PlcClient(self.plc.url, self.trusted, write_url=write_url, timeout_s=timeout_s)

    def handle_resolver(self, *, backup: FakeDns | None = None) -> HandleResolver:
        settings = HandleResolverSettings(
            timeout_s=0.3, dev=True, well_known_url=self.web.well_known_url
        )
        return HandleResolver(self.guarded, self.dns, backup_dns=backup, settings=settings)

    def resolver(self, *, store: IdentityStore | None = None) -> IdentityResolver:
        resolver = IdentityResolver(
            plc=self.plc_client(),
            web=DidWebResolver(self.guarded, dev=True, timeout_s=1.0),
            handles=self.handle_resolver(),
            settings=ResolverSettings(dev=True),
            store=store,
            now_s=self.clock.now_s,
        )
        self.resolvers.append(resolver)
        return resolver


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with running_plc() as plc, running_web() as web:
        unsafe = HttpSettings.guarded(user_agent="test", unsafe=True)
        local = HttpSettings.trusted(user_agent="test", allow_private=True)
        async with (
            GuardedClient(unsafe, resolver=web.resolver) as guarded,
            TrustedClient(local) as trusted,
        ):
            made = World(plc, web, FakeDns(), trusted, guarded)
            yield made
            for resolver in made.resolvers:
                await resolver.close()
