"""What a rescue to another host runs on: no database and no server, only clients."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pds
from pds.identity.did_plc import PlcClient
from pds.net.http import HttpSettings, TrustedClient
from pds.protocol.keys import Signer
from pds.services.rescue_elsewhere import RescueElsewhere, Say
from pds.store.clock import SystemClock


@asynccontextmanager
async def rescue_elsewhere(plc_url: str, owner: Signer, say: Say) -> AsyncIterator[RescueElsewhere]:
    """Have what carries an account to another host, until the block ends."""
    settings = HttpSettings.trusted(
        user_agent=f"Freehold/{pds.__version__}",
        allow_private=True,  # Whoever runs the command has named these.
    )
    async with TrustedClient(settings) as http:
        yield RescueElsewhere(
            plc=PlcClient(plc_url, http), http=http, clock=SystemClock(), owner=owner, say=say
        )
