"""Profiles and posts of accounts of this host, as views are made of them.

All reading is done by plain functions inside one transaction. What was taken down is left out, and
so are records that break their lexicon: the views made of these are meant to be valid.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pds.protocol.cbor import decode_json, decode_trusted, link_text
from pds.protocol.lexicon.catalog import Catalog, LexiconError
from pds.protocol.syntax import (
    AtUri,
    Did,
    InvalidSyntax,
    RecordKey,
    Tid,
    format_datetime,
    parse_at_uri,
)
from pds.protocol.tid import decode_tid
from pds.store.engine import Txn
from pds.store.moderation import hidden_paths, is_record_hidden
from pds.store.newest_records import (
    DatedRecord,
    get_dated_record,
    list_newest_records,
    list_newest_revs,
)
from pds.store.repos import AccountRepo, Repo, find_account_repo, get_account_repo

POST: Final = "app.bsky.feed.post"
PROFILE: Final = "app.bsky.actor.profile"
PROFILE_PATH: Final = f"{PROFILE}/self"
NO_HANDLE: Final = "handle.invalid"

MAX_UNSEEN_POSTS: Final = 10
"""As many posts are added to an answer at most, the newest."""
SCANNED_POSTS: Final = 50
"""Among so many of the newest posts those are sought that an AppView has not seen."""
SCAN_PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class LocalRecord:
    """A record in its JSON form; `at_us` is when it was committed."""

    uri: str
    cid: str
    rev: Tid
    at_us: int
    value: dict[str, Any]

    @property
    def indexed_at(self) -> str:
        """When it was committed, as views say it."""
        return format_datetime(self.at_us)

    @property
    def rkey(self) -> str:
        """The last part of the URI."""
        return self.uri.rsplit("/", 1)[1]


@dataclass(frozen=True, slots=True)
class LocalAuthor:
    """An account with its profile record, if it has one."""

    aid: int
    did: Did
    handle: str
    repo_id: int
    profile: LocalRecord | None


@dataclass(frozen=True, slots=True)
class LocalPost:
    """A post and who wrote it."""

    author: LocalAuthor
    record: LocalRecord


@dataclass(frozen=True, slots=True)
class Unseen:
    """What an account wrote behind a rev: its profile perhaps, and posts, oldest first."""

    author: LocalAuthor
    is_profile_new: bool
    posts: tuple[LocalPost, ...]

    @property
    def oldest_us(self) -> int | None:
        """When the oldest of these was committed."""
        times = [post.record.at_us for post in self.posts]
        if self.is_profile_new and self.author.profile is not None:
            times.append(self.author.profile.at_us)
        return min(times, default=None)


class LocalReader:
    """Reads records for views; holds nothing but the catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def read_unseen(self, txn: Txn, aid: int, rev: Tid) -> Unseen | None:
        """Return what an account wrote behind `rev`; None if that is nothing of interest.

        Cost: two rows when the head is not behind `rev`; else some 50 short rows of the index.
        """
        account = get_account_repo(txn, aid)
        if account is None or account.repo is None or account.repo.head.rev <= rev:
            return None
        repo_id = account.repo.repo_id
        author = self._author(txn, account, account.repo)
        is_profile_new = author.profile is not None and author.profile.rev > rev
        newest = list_newest_revs(txn, repo_id, POST, limit=SCANNED_POSTS)
        paths = [path for path, written in newest if written > rev][:MAX_UNSEEN_POSTS]
        posts = (self._post(txn, author, path) for path in reversed(paths))
        found = tuple(post for post in posts if post is not None)
        return Unseen(author, is_profile_new, found) if found or is_profile_new else None

    def read_author(self, txn: Txn, did_or_handle: str) -> LocalAuthor | None:
        """Return an active account of this host."""
        name = did_or_handle if did_or_handle.startswith("did:") else did_or_handle.lower()
        account = find_account_repo(txn, name)
        if account is None or account.repo is None or not account.is_active:
            return None
        return self._author(txn, account, account.repo)

    def read_post(
        self, txn: Txn, uri: str, authors: dict[str, LocalAuthor | None]
    ) -> LocalPost | None:
        """Return a post of an active account of this host; `authors` remembers them by DID."""
        parsed = parse_post_uri(uri)
        if parsed is None or parsed.rkey is None:
            return None
        name = parsed.authority
        if name not in authors:
            authors[name] = self.read_author(txn, name)
        author = authors[name]
        return None if author is None else self._post(txn, author, f"{POST}/{parsed.rkey}")

    def newest_posts(
        self, txn: Txn, author: LocalAuthor, *, before: str | None = None, limit: int
    ) -> Iterator[LocalPost]:
        """Yield posts of an account, newest key first, out of at most `limit` records."""
        hidden = hidden_paths(txn, author.aid, POST)
        while limit > 0:
            page = list_newest_records(
                txn, author.repo_id, POST, before=before, limit=min(limit, SCAN_PAGE)
            )
            for stored in page:
                if stored.path not in hidden:
                    record = self._record(author.did, stored)
                    if record is not None:
                        yield LocalPost(author, record)
            limit -= len(page)
            if len(page) < SCAN_PAGE:
                return
            before = page[-1].path.split("/", 1)[1]

    def _author(self, txn: Txn, account: AccountRepo, repo: Repo) -> LocalAuthor:
        stored = get_dated_record(txn, repo.repo_id, PROFILE_PATH)
        profile = None
        if stored is not None and not is_record_hidden(txn, account.aid, PROFILE_PATH):
            profile = self._record(account.did, stored)
        handle = account.handle or NO_HANDLE
        return LocalAuthor(account.aid, account.did, handle, repo.repo_id, profile)

    def _post(self, txn: Txn, author: LocalAuthor, path: str) -> LocalPost | None:
        stored = get_dated_record(txn, author.repo_id, path)
        if stored is None or is_record_hidden(txn, author.aid, path):
            return None
        record = self._record(author.did, stored)
        return None if record is None else LocalPost(author, record)

    def _record(self, did: Did, stored: DatedRecord) -> LocalRecord | None:
        collection, rkey = stored.path.split("/", 1)
        try:
            self._catalog.validate_record(collection, RecordKey(rkey), decode_trusted(stored.block))
        except LexiconError:
            return None
        value: Any = decode_json(stored.block)
        uri = f"at://{did}/{stored.path}"
        at_us = decode_tid(stored.rev)[0]
        return LocalRecord(uri, link_text(stored.cid), stored.rev, at_us, value)


def parse_post_uri(uri: str) -> AtUri | None:
    """Return the URI of a post taken apart, or None if it is no such."""
    try:
        parsed = parse_at_uri(uri)
    except InvalidSyntax:
        return None
    return parsed if parsed.collection == POST and parsed.rkey is not None else None
