"""Opens the places where archives are kept, as the settings name them."""

from typing import TYPE_CHECKING, Final

from pds.app.blobstores import read_certificates
from pds.blobstore.archives import ArchiveFolder, ArchivePlace, RemoteArchivePlace
from pds.config import Config
from pds.errors import ConfigError
from pds.services.archive_keeping import KeptArchives

if TYPE_CHECKING:
    from pds.blobstore.s3 import S3Settings

WORK_FOLDER: Final = "archives-under-way"
"""In the data folder: archives on their way to a bucket, or from there."""


def archive_folder(config: Config) -> ArchiveFolder | None:
    """Return the folder, if there is to be one."""
    directory = config.archives.directory
    return None if directory is None else ArchiveFolder(directory)


def open_archive_bucket(config: Config) -> RemoteArchivePlace | None:
    """Return the bucket, if there is to be one. Nothing is asked of it yet. Raises: ConfigError."""
    if config.archives.s3_bucket is None:
        return None
    try:
        from pds.blobstore.archives_s3 import ArchiveBucket
    except ImportError as error:
        raise ConfigError(
            "PDS_ARCHIVE_S3_BUCKET needs the extra `s3`: pip install 'freehold-pds[s3]'"
        ) from error
    return ArchiveBucket(_s3_settings(config), reads_back=config.archives.s3_read_back)


def kept_archives(config: Config, *, in_data_folder: bool = False) -> KeptArchives:
    """Return what finds archives; nothing but the settings of the places is needed.

    What is fetched for a moment lies in the data folder or, where there may be none, where the
    system keeps temporary files. Raises: ConfigError.
    """
    places: list[ArchivePlace] = []
    if (folder := archive_folder(config)) is not None:
        places.append(folder)
    if (bucket := open_archive_bucket(config)) is not None:
        places.append(bucket)
    return KeptArchives(
        places, work=config.data.directory / WORK_FOLDER if in_data_folder else None
    )


def _s3_settings(config: Config) -> "S3Settings":
    from pds.blobstore.s3 import S3Settings

    chosen = config.archives
    return S3Settings(
        bucket=chosen.s3_bucket or "",
        region=chosen.s3_region,
        endpoint=chosen.s3_endpoint,
        force_path_style=chosen.s3_force_path_style,
        access_key_id=chosen.s3_access_key_id,
        secret_access_key=chosen.s3_secret_access_key,
        folder=chosen.s3_folder,
        ca_pem=read_certificates("PDS_ARCHIVE_S3_CA_FILE", chosen.s3_ca_file),
        request_timeout_s=chosen.s3_request_timeout_s,
    )
