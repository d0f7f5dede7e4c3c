"""What is to be known of a reference PDS from its settings: the file `pds.env` of its host.

Only what says where its data lies, and what must be the same here: a host that is switched in place
keeps its name, its DID and the keys that others know.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pds.errors import ConfigError

ENV_FILE: Final = "pds.env"
_LINE: Final = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSettings:
    """Where a reference PDS keeps its data, and what it is. Paths are as seen from here."""

    hostname: str
    service_did: str
    account_db: Path
    sequencer_db: Path
    actors: Path
    blobs: Path | None
    blobs_temporary: Path | None
    bucket: Mapping[str, str] | None
    """The `PDS_BLOBSTORE_S3_*` settings, when the blobs are in a bucket."""
    jwt_secret: str | None
    rotation_key: str | None

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders that belong to the source, and in which nothing may be written."""
        return tuple(
            path
            for path in (
                self.account_db.parent,
                self.sequencer_db.parent,
                self.actors,
                self.blobs,
                self.blobs_temporary,
            )
            if path is not None
        )


def read_reference_settings(directory: Path, env_file: Path | None = None) -> ReferenceSettings:
    """Read the settings of the reference PDS whose data is in `directory`.

    Paths below its own data directory (it may have run in a container) are looked for below
    `directory`. Raises: ConfigError.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory} is not a folder")
    file = env_file or directory / ENV_FILE
    try:
        values = parse_env(file.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{file} is not there: name the settings file with --env") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    return _settings(directory, values)


def parse_env(text: str) -> dict[str, str]:
    """Return the settings of a file of `NAME=value` lines; quotes around a value are taken off."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None:
            continue
        name, value = match[1], match[2].strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        else:
            value = value.split(" #", 1)[0].rstrip()
        if value:
            values[name] = value
    return values


def _settings(directory: Path, values: Mapping[str, str]) -> ReferenceSettings:
    root = values.get("PDS_DATA_DIRECTORY")

    def place(name: str, default: Path | None) -> Path | None:
        text = values.get(name)
        return default if text is None else _seen_from_here(Path(text), root, directory)

    hostname = values.get("PDS_HOSTNAME", "localhost")
    bucket = None
    if "PDS_BLOBSTORE_S3_BUCKET" in values:
        bucket = {k: v for k, v in values.items() if k.startswith("PDS_BLOBSTORE_S3_")}
    blobs = place("PDS_BLOBSTORE_DISK_LOCATION", None)
    if bucket is None and blobs is None:
        raise ConfigError(
            "the settings of the reference PDS do not say where its blobs are:"
            " PDS_BLOBSTORE_DISK_LOCATION or PDS_BLOBSTORE_S3_BUCKET is missing"
        )
    if "PDS_ENTRYWAY_URL" in values:
        raise ConfigError("this reference PDS has its accounts behind an entryway, not in itself")
    return ReferenceSettings(
        hostname=hostname,
        service_did=values.get("PDS_SERVICE_DID", f"did:web:{hostname}"),
        account_db=_known(place("PDS_ACCOUNT_DB_LOCATION", directory / "account.sqlite")),
        sequencer_db=_known(place("PDS_SEQUENCER_DB_LOCATION", directory / "sequencer.sqlite")),
        actors=_known(place("PDS_ACTOR_STORE_DIRECTORY", directory / "actors")),
        blobs=blobs,
        blobs_temporary=place("PDS_BLOBSTORE_DISK_TMP_LOCATION", None),
        bucket=bucket,
        jwt_secret=values.get("PDS_JWT_SECRET"),
        rotation_key=values.get("PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX"),
    )


def _seen_from_here(path: Path, root: str | None, directory: Path) -> Path:
    """Return where a path of the reference's settings is now."""
    if root is not None and path.is_relative_to(root):
        return directory / path.relative_to(root)
    return path if path.is_absolute() else directory / path


def _known(path: Path | None) -> Path:
    assert path is not None  # noqa: S101 - it has a default
    return path
