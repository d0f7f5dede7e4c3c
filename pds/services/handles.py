"""Which handles this host gives out.

A handle under one of our service domains has a single label in front, of bounded length, that is
not reserved (ID-20). Any other handle belongs to its owner's domain and is only accepted once it
resolves to the owner's DID (ID-21); that is asked elsewhere, this module makes no requests.

The reserved labels are our own short list: names of the protocol and of hosts and mailboxes that
people trust by habit. Operators add their own. Brands and celebrities are not on it: handles under
a small host's domain claim no more than that domain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pds.errors import ConfigError, RequestError
from pds.protocol.syntax import Handle, InvalidSyntax, is_disallowed_tld, parse_handle

MAX_HANDLE_CHARS: Final = 244
"""Room for the `_atproto.` prefix of the DNS record (ID-3)."""

_RESERVED: Final = """
at atp atproto plc pds did didplc didweb repo repos tid nsid xrpc lex lexicon lexicons handle
handles relay firehose appview labeler moderation moderator mod feed feeds bsky bluesky freehold
oauth auth account accounts session sessions identity federation

www web ftp ssh dns ns1 ns2 mail email smtp imap pop pop3 mx1 mx2 webmail autoconfig autodiscover
api app apps cdn static assets img images media video blob blobs files upload uploads download
downloads cloud host hosting server proxy gateway vpn status health metrics monitor staging
internal intranet local localhost console dashboard panel portal docs blog forum wiki help shop
store pay

admin administrator hostmaster postmaster webmaster root abuse security support info contact sales
marketing billing legal privacy noc trouble news usenet uucp ssladmin sysadmin system operator
staff team official owner noreply no-reply mailer-daemon newsletter

login logout signin signout signup register registration settings profile profiles me my you
username anonymous everyone all none null nil undefined unknown invalid nobody self about terms tos
policy robots favicon well-known wellknown example search explore home index
"""
RESERVED_LABELS: Final = frozenset(_RESERVED.split())
"""The protocol and its software; hosts and services that mean something on every domain; mailboxes
that certificate authorities and people trust; words that pages and programs use as placeholders."""


def reserved_labels(changes: Sequence[str]) -> frozenset[str]:
    """Return our list with an operator's changes: `name` adds, `-name` takes out, `-*` takes all.

    So `-*,king,queen` replaces the list. The order does not matter.
    """
    added = {change for change in changes if not change.startswith("-")}
    removed = {change[1:] for change in changes if change.startswith("-")}
    kept = frozenset() if "*" in removed else RESERVED_LABELS - removed
    return kept | added


@dataclass(frozen=True, slots=True, kw_only=True)
class HandleSettings:
    """The domains under which this host gives out handles, and its rules for the front label."""

    service_domains: tuple[str, ...]
    """Suffixes that start with a dot, such as `.example.com`."""
    former_domains: tuple[str, ...] = ()
    """Suffixes under which there still are handles of ours, and no new ones."""
    min_label_chars: int = 3
    max_label_chars: int = 18
    reserved_labels: frozenset[str] = RESERVED_LABELS
    root_handles: bool = False
    """Whether the names of the domains themselves are handles, given by the operator."""
    dev: bool = False
    """Whether `.test` names are names (ID-2)."""


class HandlePolicy:
    """Judges handles for sign-up and change."""

    def __init__(self, settings: HandleSettings) -> None:
        for domain in (*settings.service_domains, *settings.former_domains):
            if not domain.startswith(".") or domain != domain.lower():
                message = f"PDS_SERVICE_HANDLE_DOMAINS: {domain!r} must be lower-case, after a dot"
                raise ConfigError(message)
        self._settings = settings

    @property
    def service_domains(self) -> Sequence[str]:
        """The suffixes under which handles are given out."""
        return self._settings.service_domains

    @property
    def max_label_chars(self) -> int:
        """The longest label that is given out."""
        return self._settings.max_label_chars

    def parse(self, text: str) -> Handle:
        """Return the handle, lower-case, if it could ever be used here.

        Raises: RequestError `InvalidHandle`.
        """
        try:
            handle = parse_handle(text)
        except InvalidSyntax as error:
            raise RequestError("InvalidHandle", "Input is not a valid handle") from error
        if is_disallowed_tld(handle, dev=self._settings.dev):
            raise RequestError("InvalidHandle", "Handle TLD is invalid or disallowed")
        if len(handle) > MAX_HANDLE_CHARS:
            raise RequestError("InvalidHandle", "Handle too long")
        return handle

    def is_ours(self, handle: Handle) -> bool:
        """Whether the handle lies under one of our domains, or is one that we give out."""
        return (
            self._domain(handle) is not None
            or self._is_root(handle)
            or self._former_domain(handle) is not None
        )

    def find_successor(self, handle: Handle) -> Handle | None:
        """Return the same label under our first domain, for a handle under a former one.

        Raises: RequestError `InvalidHandle` when that is no handle.
        """
        former = self._former_domain(handle)
        if former is None or self._domain(handle) is not None or not self.service_domains:
            return None
        return self.parse(handle[: -len(former)] + self.service_domains[0])

    def check_ours(self, handle: Handle, *, allow_reserved: bool = False) -> None:
        """Refuse a handle that this host does not give out (ID-20).

        Raises: RequestError `UnsupportedDomain`, `InvalidHandle` or `HandleNotAvailable`.
        """
        domain = self._domain(handle)
        if domain is None and self._is_root(handle):
            if not allow_reserved:
                raise RequestError("HandleNotAvailable", "Reserved handle")
            return
        if domain is None:
            raise RequestError("UnsupportedDomain", "Not a supported handle domain")
        label = handle[: -len(domain)]
        if "." in label:
            raise RequestError("InvalidHandle", "Invalid characters in handle")
        if len(label) < self._settings.min_label_chars:
            raise RequestError("InvalidHandle", "Handle too short")
        if len(label) > self._settings.max_label_chars:
            raise RequestError("InvalidHandle", "Handle too long")
        is_reserved = label in self._settings.reserved_labels
        is_domain = f".{handle}" in self.service_domains
        if (is_domain and not (self._settings.root_handles and allow_reserved)) or (
            is_reserved and not allow_reserved
        ):
            raise RequestError("HandleNotAvailable", "Reserved handle")

    def _is_root(self, handle: Handle) -> bool:
        return self._settings.root_handles and f".{handle}" in self.service_domains

    def _domain(self, handle: Handle) -> str | None:
        """The longest service domain that the handle lies under."""
        matching = [domain for domain in self.service_domains if handle.endswith(domain)]
        return max(matching, key=len, default=None)

    def _former_domain(self, handle: Handle) -> str | None:
        """The longest former domain that the handle lies under."""
        domains = self._settings.former_domains
        matching = [domain for domain in domains if handle.endswith(domain)]
        return max(matching, key=len, default=None)
