"""Tokens that work once, at all nodes of the host together (XRPC-44).

`ServiceTokens` remembers what its own process has seen. That is enough for reads; a write that was
authorized by such a token calls `refuse_replay` in its own transaction, so the token is used up
exactly if the write happens.
"""

from pds.errors import RequestError
from pds.services.principal import ReplayId
from pds.store.engine import Txn
from pds.store.used_tokens import use_token


def refuse_replay(txn: Txn, replay: ReplayId | None, now_us: int) -> None:
    """Use up the token of the caller; nothing to do for one that may be used again.

    Raises: RequestError `BadJwt` 401 when another write has used it.
    """
    if replay is None:
        return
    if not use_token(txn, replay.digest, expires_at=replay.expires_at, now_us=now_us):
        raise RequestError("BadJwt", "jwt was used already", 401)
