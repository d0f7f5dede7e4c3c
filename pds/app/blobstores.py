"""Opens the places where blobs are kept, as the settings name them."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pds.blobstore.base import BlobStore
from pds.blobstore.disk import DiskBlobStore
from pds.blobstore.replicated import ReplicatedBlobStore
from pds.blobstore.spool import Spool
from pds.config import Config
from pds.errors import ConfigError, Unavailable
from pds.log import get_logger
from pds.services.blob_places import BlobPlaceSettings

if TYPE_CHECKING:
    from pds.blobstore.probe import Feature
    from pds.blobstore.s3 import S3Settings

SPOOL_FOLDER: Final = "uploads"
NEEDS_S3: Final = "PDS_BLOBSTORE_S3_BUCKET needs the extra `s3`: pip install 'freehold-pds[s3]'"
START_PATIENCE_S: Final = 3.0
PRESIGNED_READ_S: Final = 300.0


_log = get_logger(__name__)


async def open_blobstore(
    config: Config,
    stack: AsyncExitStack,
    *,
    numbers: Sequence[int] | None = None,
    is_alone: bool = True,
) -> BlobStore:
    """Open the one place, or several as one; `stack` closes them.

    `numbers` says which, all by default. A server may run beside it unless `is_alone`.
    Raises: ConfigError.
    """
    spool = await open_spool(config, stack)
    chosen = sorted(config.blob_places) if numbers is None else numbers
    stores = [await open_place(config, n, spool, stack, is_alone=is_alone) for n in chosen]
    if len(stores) == 1:
        return stores[0]
    quorum = min(config.blob_write_quorum, len(stores))
    store = ReplicatedBlobStore(stores, spool, quorum=quorum)
    stack.push_async_callback(store.close)
    return store


async def open_spool(config: Config, stack: AsyncExitStack) -> Spool:
    """Open the place where uploads wait for their way to a bucket. Raises: ConfigError."""
    spool = Spool(config.blobstore.disk_temporary_location or config.data.directory / SPOOL_FOLDER)
    if list(config.blob_places) != [1] or config.blobstore.s3_bucket is not None:
        await spool.start()
    stack.push_async_callback(spool.close)
    return spool


async def open_place(
    config: Config, number: int, spool: Spool, stack: AsyncExitStack, *, is_alone: bool = True
) -> BlobStore:
    """Open one of the configured places. Raises: ConfigError."""
    place = config.blob_places.get(number)
    if place is None:
        raise ConfigError(
            f"there is no blob store {number}: set PDS_BLOBSTORE_{number}_S3_BUCKET or"
            f" PDS_BLOBSTORE_{number}_DISK_LOCATION"
        )
    if place.s3_bucket is None:
        location = place.disk_location or config.blob_location
        disk = DiskBlobStore(location, temporary=place.disk_temporary_location)
        stack.push_async_callback(disk.close)
        await disk.start(is_alone=is_alone)
        return disk
    try:
        from pds.blobstore.s3 import S3BlobStore
    except ImportError as error:
        raise ConfigError(NEEDS_S3) from error
    settings = s3_settings(
        place, owner=config.service_did, former_owners=config.further_service_dids
    )
    store = S3BlobStore(settings, spool)
    try:
        async with asyncio.timeout(START_PATIENCE_S):
            await store.start()
    except (Unavailable, TimeoutError) as error:
        # It may be back soon, and another place may do meanwhile.
        _log.error("blobstore.unreachable", store=store.properties.name, reason=str(error))
    return store


async def probe_bucket(config: Config, number: int, note: Callable[[str], None]) -> "list[Feature]":
    """Find out what the provider of a configured bucket can do. Raises: ConfigError, Unavailable"""
    place = config.blob_places.get(number)
    if place is None or place.s3_bucket is None:
        raise ConfigError(f"blob store {number} is no bucket: there is nothing to find out")
    try:
        from pds.blobstore.probe import Probe
    except ImportError as error:
        raise ConfigError(NEEDS_S3) from error
    return await Probe(s3_settings(place)).run(note)


def read_certificates(name: str, path: Path | None) -> bytes | None:
    """Return the authorities that setting `name` adds, as PEM, if any. Raises: ConfigError."""
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: {error}") from error


def s3_settings(
    place: BlobPlaceSettings, *, owner: str | None = None, former_owners: tuple[str, ...] = ()
) -> "S3Settings":
    """Return what the S3 store wants to know. Raises: ConfigError."""
    from pds.blobstore.s3 import S3Settings

    if place.s3_bucket is None:
        raise ConfigError("PDS_BLOBSTORE_S3_BUCKET is missing")
    return S3Settings(
        bucket=place.s3_bucket,
        region=place.s3_region,
        endpoint=place.s3_endpoint,
        force_path_style=place.s3_force_path_style,
        access_key_id=place.s3_access_key_id,
        secret_access_key=place.s3_secret_access_key,
        folder=place.s3_folder,
        ca_pem=read_certificates("PDS_BLOBSTORE_S3_CA_FILE", place.s3_ca_file),
        upload_timeout_s=place.s3_upload_timeout_s,
        request_timeout_s=place.s3_request_timeout_s,
        presigned_read_s=PRESIGNED_READ_S if place.s3_presigned_reads else None,
        owner=owner,
        former_owners=former_owners,
    )
