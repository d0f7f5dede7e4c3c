"""Builds the whole server from its settings, runs it, and takes it down in order.

`running_server` is the one way to have a server: the commands, and tests, enter it and get a
`RunningServer`. Everything is made here and handed down; nothing below knows the whole.

Start: database, keys, clock, identity, services, then the port. The clock and the relays are asked
over the network, so the port opens after half a second even if they are silent; until the clock is
believed, writes answer 503 (promise A9).

Stop: no new connections, firehose readers are told, requests in progress finish, background work
ends, then the database closes. Whatever was answered is on disk before it was answered.

Modules: `foundation` (what services stand on), `wiring` (the services), `http` (the port and what
answers behind it), `background` (timed work), `server` (all of it in order).
"""

from pds.app.blobstores import open_blobstore, probe_bucket
from pds.app.http import METHOD_TABLES
from pds.app.mail import send_test_mail
from pds.app.maintenance import (
    accept_clock,
    give_up_conversion,
    opened_conversion,
    plan_database_conversion,
    repair_repo_rev,
)
from pds.app.options import EmbeddedPlc, Options
from pds.app.reading import read_beside
from pds.app.server import RunningServer, running_server

__all__ = [
    "METHOD_TABLES",
    "EmbeddedPlc",
    "Options",
    "RunningServer",
    "accept_clock",
    "give_up_conversion",
    "open_blobstore",
    "opened_conversion",
    "plan_database_conversion",
    "probe_bucket",
    "read_beside",
    "repair_repo_rev",
    "running_server",
    "send_test_mail",
]
