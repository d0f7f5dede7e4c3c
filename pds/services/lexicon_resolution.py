"""Schemas of collections that this program does not know by itself.

Two layers, each a bounded memory (`lexicon_memory`). *Documents*: one published schema by its NSID,
from memory, from the table `lexicon_cache`, or from its authority (`lexicon_fetch`). *Record
types*: a document with everything that it refers to, bounded in number, size and depth, compiled
and ready to judge records. References may form circles. A bundled schema is never looked up and
never replaced by a published one (LEX-65).

What the policy says (`PDS_LEXICON_RESOLUTION`):

* off: nothing is looked up.
* lazy: a write never waits. The first ones to an unknown collection are not checked; as soon as its
  schema is known, the next ones are. `validate: true` asks to wait.
* required: a write waits a little, and is refused when no schema is to be had.

A schema that changes is taken over within about an hour; records that are stored are never judged
again. Nobody can make a change that breaks old records harmless to new ones (LEX-90): the new
schema simply holds from then on.

Spec: (LEX-61, LEX-63, LEX-65, LEX-80..LEX-86, LEX-90)
"""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final

from pds.errors import NotResolvable, ProtocolError, RemoteError, RequestError, StoreError
from pds.identity.cache import CacheTimes
from pds.protocol.cbor import CborError
from pds.protocol.lexicon.catalog import Catalog
from pds.protocol.lexicon.links import check_links, find_missing
from pds.protocol.lexicon.schema import SchemaError
from pds.protocol.syntax import InvalidSyntax, Nsid, parse_did, parse_nsid
from pds.services.lexicon_fetch import (
    LexiconFetcher,
    LexiconNotFound,
    PublishedLexicon,
    read_published,
)
from pds.services.lexicon_memory import Learned, LexiconMemory
from pds.services.settings import LexiconPolicy
from pds.services.sweeping import sweep_rows
from pds.store.clock import US_PER_S, Clock
from pds.store.engine import Engine, Txn
from pds.store.lexicon_cache import (
    SavedLexicon,
    delete_old_lexicons,
    delete_surplus_lexicons,
    get_saved_lexicon,
    save_lexicon,
)

MAX_DOCUMENTS: Final = 50
"""Most published documents that one type of record may need."""
MAX_SET_BYTES: Final = 512 * 1024
"""Largest size of these documents together."""
MAX_ROUNDS: Final = 10
"""How far references are followed from document to document."""
WRITE_WAIT_S: Final = 3.0
"""How long a write waits that must know its schema."""

STALE_S: Final = 3600.0
MAX_S: Final = 90 * 86_400.0
"""A schema that cannot be fetched again is used for as long as a permission set would be."""
NEGATIVE_S: Final = 300.0
FAILURE_S: Final = 30.0
RETRY_S: Final = 60.0
TIMES: Final = CacheTimes(stale_s=STALE_S, max_s=MAX_S, negative_s=NEGATIVE_S, failure_s=FAILURE_S)
TYPE_TIMES: Final = CacheTimes(
    stale_s=600.0, max_s=MAX_S, negative_s=NEGATIVE_S, failure_s=FAILURE_S
)
"""A type of record looks often whether its documents have changed; they are in memory."""

BYTES_PER_BYTE: Final = 40
"""What one byte of a document takes once it is parsed and compiled, roughly: measured 15 to 100."""
ENTRY_BYTES: Final = 4000
MAX_ROWS: Final = 20_000

_log: Final = logging.getLogger(__name__)


class Lexicons:
    """Knows published schemas, and finds out about those that it does not know."""

    def __init__(
        self,
        *,
        engine: Engine,
        fetcher: LexiconFetcher,
        catalog: Catalog,
        policy: LexiconPolicy,
        wall: Clock,
        write_wait_s: float = WRITE_WAIT_S,
    ) -> None:
        """`catalog` holds the bundled schemas, which always win."""
        self._engine = engine
        self._fetcher = fetcher
        self._catalog = catalog
        self._policy = policy
        self._wall = wall
        self._write_wait_s = write_wait_s
        self._documents = LexiconMemory(self._learn_document, times=TIMES, now_s=self._now_s)
        self._types = LexiconMemory(self._learn_type, times=TYPE_TIMES, now_s=self._now_s)
        self._saves: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End what is running."""
        await self._types.close()
        await self._documents.close()
        await asyncio.gather(*self._saves, return_exceptions=True)

    async def settle(self) -> None:
        """Wait for everything that goes on behind the scenes."""
        await self._types.settle()
        await self._documents.settle()
        await asyncio.gather(*self._saves, return_exceptions=True)

    async def document(self, nsid: Nsid) -> PublishedLexicon:
        """Return a published schema of any kind, bundled or not, as its authority has it.

        Raises: LexiconNotFound (a definite no), Unreachable. Spec: LEX-86
        """
        if self._policy is LexiconPolicy.OFF:
            raise LexiconNotFound("this server looks up no lexicons")
        return await self._documents.ask(nsid)

    async def schemas(
        self, collections: Collection[str], *, must_know: bool
    ) -> Mapping[str, Catalog]:
        """Return what can judge records of `collections`, none of which is bundled.

        With `must_know` (`validate: true`), or when the policy is `required`, waits for them.
        Raises: RequestError `InvalidRequest` when one must be known and is not.
        Spec: LEX-61, LEX-63, LEX-65
        """
        if self._policy is LexiconPolicy.OFF:
            return {}
        names = [name for name in collections if _is_nsid(name)]
        if must_know or self._policy is LexiconPolicy.REQUIRED:
            return await self._wait_for(names)
        known = ((name, self._types.peek(name)) for name in names)
        return {name: catalog for name, catalog in known if catalog is not None}

    async def _wait_for(self, names: Sequence[str]) -> Mapping[str, Catalog]:
        found: dict[str, Catalog] = {}

        async def ask(name: str) -> None:
            try:
                found[name] = await self._types.ask(name)
            except NotResolvable as error:
                raise _unknown(name, str(error)) from error
            except RemoteError as error:
                raise _unknown(name, f"could not be found out now, {error}") from error

        asked = [asyncio.create_task(ask(name)) for name in names]
        try:
            async with asyncio.timeout(self._write_wait_s):
                await asyncio.gather(*asked)
        except TimeoutError as error:
            missing = ", ".join(name for name in names if name not in found)
            raise _unknown(missing, "could not be found out in time") from error
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return found

    async def sweep(self, now_us: int) -> int:
        """Drop saved schemas that are too old or too many; return how many."""
        return await sweep_rows(self._engine, "lexicons.sweep", _delete_old, now_us)

    def _now_s(self) -> float:
        return self._wall.now_us() / US_PER_S

    # --- documents ------------------------------------------------------------------------

    async def _learn_document(self, name: str) -> Learned[PublishedLexicon]:
        """Find one document: in the table, else at its authority."""
        nsid = Nsid(name)
        saved = await self._load(nsid)
        now_s = self._now_s()
        if saved is not None and 0 <= now_s - saved.fetched_at_s < STALE_S:
            return saved
        try:
            published = await self._fetcher.fetch(nsid)
        except LexiconNotFound:
            self._save(SavedLexicon(nsid, None, None, None, self._wall.now_us()))
            raise
        except RemoteError:
            if saved is None or now_s - saved.fetched_at_s >= MAX_S:
                raise
            return saved._replace(fetched_at_s=now_s - STALE_S + RETRY_S)
        self._save(
            SavedLexicon(
                nsid, published.uri, str(published.cid), published.block, self._wall.now_us()
            )
        )
        return Learned(published, _weigh([published]), self._now_s())

    async def _load(self, nsid: Nsid) -> Learned[PublishedLexicon] | None:
        """Return the saved document. Raises: LexiconNotFound for a saved no that still counts."""
        try:
            saved = await self._engine.read("lexicon.load", get_saved_lexicon, nsid)
        except StoreError:
            return None  # As good as none: it is asked for again.
        if saved is None:
            return None
        age_s = self._now_s() - saved.fetched_at / US_PER_S
        if saved.document is None or saved.uri is None:
            if 0 <= age_s < NEGATIVE_S:
                raise LexiconNotFound(f"there was no usable schema {nsid} a moment ago")
            return None
        try:
            did = parse_did(saved.uri.removeprefix("at://").partition("/")[0])
            published = await asyncio.to_thread(read_published, did, nsid, saved.document)
        except (InvalidSyntax, CborError, LexiconNotFound):
            return None  # Saved by another version, or damaged.
        return Learned(published, _weigh([published]), saved.fetched_at / US_PER_S)

    def _save(self, saved: SavedLexicon) -> None:
        """Keep an answer for other nodes and later starts; its loss costs a request."""

        async def save() -> None:
            with suppress(StoreError):
                await self._engine.transact("lexicon.save", save_lexicon, saved, bulk=True)

        task = asyncio.create_task(save())
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)

    # --- types of record ------------------------------------------------------------------

    async def _learn_type(self, name: str) -> Learned[Catalog]:
        """Collect a document and all that it refers to, and make a catalog of them.

        Raises: LexiconNotFound when it cannot be used as a whole (LEX-11), Unreachable.
        """
        found: dict[str, PublishedLexicon] = {}
        wanted = [name]
        for _ in range(MAX_ROUNDS):
            if len(found) + len(wanted) > MAX_DOCUMENTS:
                raise LexiconNotFound(f"{name} refers to more than {MAX_DOCUMENTS} schemas")
            for published in await self._ask_all(wanted):
                found[published.nsid] = published
            if sum(len(published.block) for published in found.values()) > MAX_SET_BYTES:
                raise LexiconNotFound(
                    f"{name} refers to more than {MAX_SET_BYTES} bytes of schemas"
                )
            catalog, missing = await asyncio.to_thread(self._link, name, list(found.values()))
            if not missing:
                _log.info("lexicon.learned", extra={"nsid": name, "documents": len(found)})
                return Learned(catalog, _weigh(found.values()), self._now_s())
            for text in missing:
                nsid = text.partition("#")[0]
                if nsid in found or nsid in self._catalog.documents:
                    raise LexiconNotFound(f"{name} refers to {text}, which is not defined")
            wanted = sorted({text.partition("#")[0] for text in missing})
        raise LexiconNotFound(f"references of {name} lead through too many schemas")

    async def _ask_all(self, names: Sequence[str]) -> list[PublishedLexicon]:
        """Return the documents; of several errors a definite no counts first."""
        answers = await asyncio.gather(
            *(self._documents.ask(name, fresh=True) for name in names), return_exceptions=True
        )
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        for error in sorted(errors, key=lambda error: not isinstance(error, NotResolvable)):
            raise error
        return [answer for answer in answers if isinstance(answer, PublishedLexicon)]

    def _link(
        self, name: str, documents: Sequence[PublishedLexicon]
    ) -> tuple[Catalog, frozenset[str]]:
        """Join documents and say what is missing. On a thread: large ones take a while.

        Raises: LexiconNotFound when a reference leads to the wrong type (LEX-5).
        """
        catalog = Catalog((published.document for published in documents), base=self._catalog)
        missing = find_missing(name, catalog.definition)
        if not missing:
            try:
                check_links(name, catalog.definition)
            except SchemaError as error:
                raise LexiconNotFound(f"{name} cannot be used: {error}") from error
            with suppress(ProtocolError):  # No record is like this; it is compiled meanwhile.
                catalog.validate_record(name, None, {})
        return catalog, missing


def _delete_old(txn: Txn, now_us: int) -> int:
    count = delete_old_lexicons(
        txn,
        found_before=now_us - round(MAX_S * US_PER_S),
        none_before=now_us - round(NEGATIVE_S * US_PER_S),
    )
    return count or delete_surplus_lexicons(txn, keep=MAX_ROWS)


def _weigh(documents: Collection[PublishedLexicon]) -> int:
    return ENTRY_BYTES + BYTES_PER_BYTE * sum(len(published.block) for published in documents)


def _is_nsid(text: str) -> bool:
    try:
        parse_nsid(text)
    except InvalidSyntax:
        return False
    return True


def _unknown(name: str, reason: str) -> RequestError:
    return RequestError("InvalidRequest", f"Unknown lexicon type: {name} ({reason})")
