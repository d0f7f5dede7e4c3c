"""What the operator can set about archives that are written without being asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pds.errors import ConfigError
from pds.services.settings import ms_to_s, parse_url, setting

IN_THE_CLEAR: Final = (
    "PDS_ARCHIVE_S3_BUCKET without PDS_ARCHIVE_PASSPHRASE: archives lie there unencrypted. No keys,"
    " passwords, mail addresses or preferences are in them; but with what is public (records,"
    " blobs, the log of the identity) come records and blobs that moderators have hidden, and older"
    " archives keep what their owners have deleted since"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSettings:
    """Scheduled archives: where, how often, how many."""

    directory: Path | None = setting(  # noqa: RUF009
        "PDS_ARCHIVE_DIRECTORY",
        "Folder in which an archive of every active account is kept. A disk of its own survives"
        " what the server may not.",
        parse=Path,
    )
    every_s: int = setting(
        "PDS_ARCHIVE_INTERVAL_S",
        "Seconds between two rounds of writing archives; only accounts that have changed since are"
        " written.",
        default=86_400,
    )
    keep: int = setting(
        "PDS_ARCHIVE_KEEP",
        "Archives kept of each account in each place, the newest ones.",
        default=2,
    )
    passphrase: str | None = setting(
        "PDS_ARCHIVE_PASSPHRASE",
        "Passphrase to which scheduled archives are encrypted; not encrypted when unset.",
        secret=True,
    )
    with_preferences: bool = setting(
        "PDS_ARCHIVE_WITH_PREFERENCES",
        "Put the private preferences of accounts into scheduled archives, too, as they are when the"
        " repo has changed; needs a passphrase.",
        default=False,
    )
    s3_bucket: str | None = setting(
        "PDS_ARCHIVE_S3_BUCKET",
        "Bucket of an S3-compatible provider in which such archives are kept, instead of the folder"
        " or besides it. Best with another provider than the blobs'.",
    )
    s3_region: str = setting("PDS_ARCHIVE_S3_REGION", "Region of that bucket.", default="us-east-1")
    s3_endpoint: str | None = setting(
        "PDS_ARCHIVE_S3_ENDPOINT",
        "URL of the provider, without the bucket; AWS when unset.",
        parse=parse_url,
    )
    s3_force_path_style: bool = setting(
        "PDS_ARCHIVE_S3_FORCE_PATH_STYLE",
        "Name the bucket in the path instead of the host name.",
        default=False,
    )
    s3_access_key_id: str | None = setting(
        "PDS_ARCHIVE_S3_ACCESS_KEY_ID",
        "Key of the bucket; without it what `AWS_*` variables or the machine's role say.",
    )
    s3_secret_access_key: str | None = setting(
        "PDS_ARCHIVE_S3_SECRET_ACCESS_KEY", "Secret of that key.", secret=True
    )
    s3_request_timeout_s: float = setting(
        "PDS_ARCHIVE_S3_REQUEST_TIMEOUT_MS",
        "Milliseconds that one request (8 MB of an upload) may take; it is repeated up to three"
        " times.",
        default=60.0,
        parse=ms_to_s,
    )
    s3_folder: str = setting(
        "PDS_ARCHIVE_S3_FOLDER", "Beginning of all keys in the bucket.", default="archives"
    )
    s3_ca_file: Path | None = setting(  # noqa: RUF009
        "PDS_ARCHIVE_S3_CA_FILE", "Certificates (PEM) to trust besides the usual ones."
    )
    s3_read_back: bool = setting(
        "PDS_ARCHIVE_S3_READ_BACK",
        "Read every archive back after its upload and compare hashes. `false` compares sizes only,"
        " where a provider bills for reading.",
        default=True,
    )

    @property
    def is_set(self) -> bool:
        """Whether archives are written at all."""
        return self.directory is not None or self.s3_bucket is not None

    @property
    def notices(self) -> tuple[str, ...]:
        """What the operator should know at every start."""
        is_open = self.s3_bucket is not None and not self.passphrase
        return (IN_THE_CLEAR,) if is_open else ()

    def check(self) -> None:
        """Hold the settings against each other. Raises: ConfigError."""
        if bool(self.s3_access_key_id) != bool(self.s3_secret_access_key):
            raise ConfigError(
                "PDS_ARCHIVE_S3_ACCESS_KEY_ID and PDS_ARCHIVE_S3_SECRET_ACCESS_KEY belong together;"
                " set both or neither"
            )
        if self.s3_bucket is None and (self.s3_endpoint or self.s3_access_key_id):
            raise ConfigError("PDS_ARCHIVE_S3_BUCKET is missing")
        if self.with_preferences and not self.passphrase:
            raise ConfigError(
                "PDS_ARCHIVE_WITH_PREFERENCES needs PDS_ARCHIVE_PASSPHRASE: preferences are private"
            )
        folder = self.s3_folder
        if not folder or folder.startswith("/") or folder.endswith("/") or "//" in folder:
            raise ConfigError(
                "PDS_ARCHIVE_S3_FOLDER must be a name such as `archives`, without a slash at its"
                " beginning or end"
            )
