"""com.atproto.lexicon: what a name means, as its authority has published it."""

from typing import Final

from pds.errors import RequestError
from pds.protocol.cbor import decode_json
from pds.protocol.data import Json
from pds.protocol.syntax import Nsid
from pds.services.lexicon_fetch import LexiconNotFound
from pds.xrpc.server import Auth, Call, MethodTable

routes: Final = MethodTable()


@routes.method("com.atproto.lexicon.resolveLexicon", auth=Auth.NONE)
async def resolve_lexicon(call: Call) -> Json:
    """Return a published schema, and where it lies; proven to be its authority's (LEX-86)."""
    try:
        found = await call.services.lexicons.document(Nsid(call.params["nsid"]))
    except LexiconNotFound as error:
        raise RequestError("LexiconNotFound", f"Lexicon not found: {error}") from error
    return {"uri": found.uri, "cid": str(found.cid), "schema": decode_json(found.block)}
