"""What this server says about itself: describeServer, its DID document, its front page.

All of it is fixed at start, so the answers are made once. Under a former name of this server the
DID of that name has a document too, which says where the service is now.
"""

from dataclasses import dataclass
from typing import Final

from pds.protocol.data import Json
from pds.protocol.diddoc import render_web_document
from pds.protocol.syntax import parse_did

SERVICE_ID: Final = "atproto_pds"
SERVICE_TYPE: Final = "AtprotoPersonalDataServer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfoSettings:
    """The facts. `handle_domains` begin with a dot."""

    version: str
    service_did: str
    hostname: str
    public_url: str
    handle_domains: tuple[str, ...]
    invite_required: bool
    blob_upload_limit: int
    former_hostnames: tuple[str, ...] = ()
    service_name: str | None = None
    privacy_policy_url: str | None = None
    terms_of_service_url: str | None = None
    contact_email: str | None = None
    home_url: str | None = None
    support_url: str | None = None


class ServerInfo:
    """Answers questions about the server as a whole."""

    def __init__(self, settings: ServerInfoSettings) -> None:
        self.settings = settings
        self._description = _describe(settings)

    @property
    def version(self) -> str:
        """The version of the program."""
        return self.settings.version

    @property
    def service_did(self) -> str:
        """The DID of this server."""
        return self.settings.service_did

    def describe(self) -> Json:
        """The answer of com.atproto.server.describeServer (XRPC-88)."""
        return self._description

    def is_own_name(self, name: str) -> bool:
        """Whether a host name is or was that of this server."""
        return name == self.settings.hostname or name in self.settings.former_hostnames

    def did_document(self, host: str = "") -> Json:
        """The document of our did:web, None if our DID is published elsewhere (ID-34).

        `host` is the name under which it is asked for, as in a Host header.
        """
        settings = self.settings
        name = host.partition(":")[0].lower().rstrip(".")
        if name in settings.former_hostnames and name != "localhost":
            did = f"did:web:{name}"
        else:
            did = "did:web:" + settings.public_url.partition("://")[2].replace(":", "%3A")
            if settings.service_did != did and not settings.former_hostnames:
                return None
        return render_web_document(
            parse_did(did),
            services={SERVICE_ID: (SERVICE_TYPE, settings.public_url)},
        )

    def banner(self) -> str:
        """The text of the front page."""
        settings = self.settings
        links = (
            ("Home", settings.home_url),
            ("Support", settings.support_url),
            ("Privacy policy", settings.privacy_policy_url),
            ("Terms of service", settings.terms_of_service_url),
        )
        name = settings.service_name or settings.hostname
        return "\n".join(
            [
                f"{name}: a personal data server (PDS) for the AT Protocol network.",
                "",
                "Most of what is here lies under /xrpc/.",
                "",
                *(f"{label}: {url}" for label, url in links if url),
                "Software: Freehold",
                "Protocol: https://atproto.com",
                "",
            ]
        )


def _describe(settings: ServerInfoSettings) -> dict[str, Json]:
    links = {
        name: url
        for name, url in (
            ("privacyPolicy", settings.privacy_policy_url),
            ("termsOfService", settings.terms_of_service_url),
        )
        if url
    }
    contact = {"email": settings.contact_email} if settings.contact_email else {}
    return {
        "did": settings.service_did,
        "availableUserDomains": list(settings.handle_domains),
        "inviteCodeRequired": settings.invite_required,
        "blobUploadLimit": settings.blob_upload_limit,
        "links": dict[str, Json](links),
        "contact": dict[str, Json](contact),
    }
