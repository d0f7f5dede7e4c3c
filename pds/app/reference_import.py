"""Opens a stopped reference PDS and this host's own database, to take the one over into the other.

What must be the same on both sides is held against each other before anything is read: name, DID
and the keys that others know. The source's folders must not be ours.
"""

import secrets
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from pds.app.blobstores import NEEDS_S3, open_blobstore
from pds.app.database import make_engine
from pds.app.foundation import open_keystore
from pds.blobstore.reference import FolderBlobs, SourceBlobs
from pds.config import Config
from pds.errors import ConfigError
from pds.services.reference_import import ImportReport, ReferenceImport, Tell, check_reference
from pds.services.reference_import_settings import (
    ReferenceSettings,
    read_reference_settings,
)
from pds.store.clock import SystemClock
from pds.store.keystore import knows_master_key
from pds.store.reference_reader import ReferenceHost, ReferencePaths

SCRATCH_FOLDER: Final = "reference-import"
_TRUE: Final = frozenset({"true", "1", "yes"})


@asynccontextmanager
async def opened_reference_import(
    config: Config,
    directory: Path,
    *,
    env_file: Path | None = None,
    without: Collection[str] = (),
) -> AsyncIterator[tuple[ReferenceImport, list[str]]]:
    """Open both sides; with the import come notes on what cannot go on.

    Raises: ConfigError, StoreError.
    """
    settings = read_reference_settings(directory, env_file)
    notes = check_same_host(config, settings)
    _check_apart(config, settings)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        engine = make_engine(config, clock)
        await engine.start()
        stack.push_async_callback(engine.close)
        for left_behind in config.data.directory.glob(f"{SCRATCH_FOLDER}-*"):
            _delete(left_behind)
        host = stack.enter_context(_opened_host(config, settings))
        is_new = not await engine.read("keys.known", knows_master_key)
        blobstore = await open_blobstore(config, stack, is_alone=not config.data.is_shared)
        yield (
            ReferenceImport(
                host,
                _source_blobs(settings),
                engine=engine,
                keystore=open_keystore(config, is_new=is_new),
                blobstore=blobstore,
                service_did=config.service_did,
                window_s=config.federation.backfill_s,
                now_us=clock.now_us,
                without=without,
            ),
            notes,
        )


async def check_reference_host(
    config: Config,
    directory: Path,
    *,
    env_file: Path | None = None,
    without: Collection[str] = (),
    tell: Tell,
) -> tuple[ImportReport, list[str]]:
    """Check a reference PDS, and make or change nothing here but copies that are deleted again.

    Raises: ConfigError, StoreError.
    """
    settings = read_reference_settings(directory, env_file)
    notes = check_same_host(config, settings)
    _check_apart(config, settings)
    with _opened_host(config, settings) as host:
        report = await check_reference(host, _source_blobs(settings), without=without, tell=tell)
        return report, notes


def check_same_host(config: Config, settings: ReferenceSettings) -> list[str]:
    """Return notes on what cannot go on because of these settings.

    Raises: ConfigError when it would not be the same host.
    """
    if config.host.hostname != settings.hostname:
        raise ConfigError(
            f"the reference PDS is {settings.hostname}, and PDS_HOSTNAME is"
            f" {config.host.hostname}: identities point at the name, so it must stay the same"
        )
    if config.service_did != settings.service_did:
        raise ConfigError(
            f"the reference PDS is {settings.service_did}, and this host {config.service_did}: set"
            " PDS_SERVICE_DID to the former"
        )
    ours = (config.secrets.plc_rotation_key or "").lower()
    if settings.rotation_key is not None and ours != settings.rotation_key.lower():
        raise ConfigError(
            "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX is not the one of the reference PDS: its"
            " identities could not be changed from here"
        )
    notes = []
    if settings.rotation_key is None:
        notes.append(
            "the rotation key of the reference PDS is not in its settings: make sure that this"
            " host's is the one that its identities name"
        )
    if settings.jwt_secret != config.secrets.jwt_secret:
        notes.append("PDS_JWT_SECRET is another one here: everybody must sign in again")
    return notes


def _check_apart(config: Config, settings: ReferenceSettings) -> None:
    """Refuse to write into the source. Raises: ConfigError."""
    ours = {"PDS_DATA_DIRECTORY": config.data.directory}
    for number, place in config.blob_places.items():
        if place.s3_bucket is None:
            ours[f"the folder of blob store {number}"] = place.disk_location or config.blob_location
    for name, path in ours.items():
        for folder in settings.folders:
            here, there = path.resolve(), folder.resolve()
            if here == there or here.is_relative_to(there):
                raise ConfigError(
                    f"{name} ({path}) lies in {folder}, which belongs to the reference PDS and is"
                    " never written to: choose another folder"
                )


@contextmanager
def _opened_host(config: Config, settings: ReferenceSettings) -> Iterator[ReferenceHost]:
    scratch = config.data.directory / f"{SCRATCH_FOLDER}-{secrets.token_hex(4)}"
    paths = ReferencePaths(settings.account_db, settings.sequencer_db, settings.actors)
    try:
        host = ReferenceHost(paths, scratch)
        try:
            yield host
        finally:
            host.close()
    finally:
        _delete(scratch)


def _delete(scratch: Path) -> None:
    if scratch.is_dir():
        for file in scratch.iterdir():
            file.unlink()
        scratch.rmdir()


def _source_blobs(settings: ReferenceSettings) -> SourceBlobs:
    if settings.bucket is None:
        assert settings.blobs is not None  # noqa: S101 - one of the two is there
        return FolderBlobs(settings.blobs, settings.blobs_temporary)
    return _bucket_blobs(settings.bucket)


def _bucket_blobs(values: Mapping[str, str]) -> SourceBlobs:
    try:
        from pds.blobstore.reference_s3 import BucketBlobs
        from pds.blobstore.s3 import S3Settings
    except ImportError as error:
        raise ConfigError(NEEDS_S3) from error

    def value(name: str) -> str | None:
        return values.get(f"PDS_BLOBSTORE_S3_{name}")

    return BucketBlobs(
        S3Settings(
            bucket=value("BUCKET") or "",
            region=value("REGION") or "us-east-1",
            endpoint=value("ENDPOINT"),
            force_path_style=(value("FORCE_PATH_STYLE") or "").lower() in _TRUE,
            access_key_id=value("ACCESS_KEY_ID"),
            secret_access_key=value("SECRET_ACCESS_KEY"),
        )
    )
