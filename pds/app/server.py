"""A whole server that runs as long as a block."""

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from pds.app.background import background
from pds.app.foundation import lay_foundation
from pds.app.http import (
    METHOD_TABLES,
    build_router,
    listening,
    observer,
    root_handler,
    serving_metrics,
    serving_plc,
)
from pds.app.options import Options
from pds.app.wiring import build_services
from pds.config import Config
from pds.log import get_logger
from pds.metrics import Metrics
from pds.services import Services
from pds.services.jobs import Schedule
from pds.services.passwords import Passwords
from pds.store.base import ThreadedEngine
from pds.store.clock import CheckedClock
from pds.store.engine import SWITCH_INTERVAL_S
from pds.xrpc.listener import Listener
from pds.xrpc.proxy import proxy_call
from pds.xrpc.rate_hook import RateHook
from pds.xrpc.server import XrpcServer

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers; `url` is where, on this machine."""

    config: Config
    services: Services
    xrpc: XrpcServer
    engine: ThreadedEngine
    clock: CheckedClock
    metrics: Metrics
    schedule: Schedule
    url: str


@asynccontextmanager
async def running_server(
    config: Config, *, sock: socket.socket | None = None, options: Options | None = None
) -> AsyncIterator[RunningServer]:
    """Run a server until the block ends.

    `sock` is a bound socket to listen on instead of the configured address; `config` must carry
    its port. It is closed at the end, whatever happens.

    Raises: ConfigError, StoreError when the server cannot start.
    """
    options = options or Options()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    async with AsyncExitStack() as stack:
        if sock is not None:
            stack.callback(sock.close)
        if options.plc is not None:
            stack.callback(options.plc.socket.close)
            await stack.enter_async_context(serving_plc(options.plc))
        foundation = await lay_foundation(config, stack, time=options.time)
        passwords = Passwords()
        stack.callback(passwords.close)
        services = build_services(foundation, passwords, options)
        stack.push_async_callback(services.account_mails.settle)
        stack.push_async_callback(services.accounts.close)
        stack.push_async_callback(services.identity_journal.close)
        stack.push_async_callback(services.migration.close)
        stack.push_async_callback(services.lexicons.close)
        rate_limits = services.rate_limits
        await rate_limits.load()
        stack.push_async_callback(rate_limits.save)
        metrics = Metrics()
        metrics.add_process_metrics()
        await stack.enter_async_context(
            serving_metrics(
                metrics, config.listener.metrics_port, shared=options.shares_metrics_port
            )
        )
        metrics.gauge(
            "plc_foreign_operations",
            "Operations of others on identities of ours that can still be taken back.",
        ).set_function(lambda: services.keeping.plc_watch.open_alarms)
        xrpc = XrpcServer(
            services,
            METHOD_TABLES,
            fallback=proxy_call,
            observe=observer(metrics),
            check_outputs=options.check_outputs,
            rate_hook=RateHook(rate_limits, config.rates) if config.rates.enabled else None,
        )
        router = build_router(services, options)
        services.firehose.start()
        foundation.engine.add_event_hook(services.crawlers.note_events)
        schedule = await stack.enter_async_context(background(foundation, services))
        listener = Listener(root_handler(xrpc, router), config.listener)
        await stack.enter_async_context(listening(listener, config, sock, services.firehose))
        _log.info("server.started", url=config.public_url, did=config.service_did)
        yield RunningServer(
            config=config,
            services=services,
            xrpc=xrpc,
            engine=foundation.engine,
            clock=foundation.clock,
            metrics=metrics,
            schedule=schedule,
            url=config.public_url,
        )
        _log.info("server.stopping")
