"""Where the operator wants blobs to be kept: a folder or a bucket, and up to two more of them."""

from dataclasses import dataclass
from pathlib import Path

from pds.services.settings import ms_to_s, parse_url, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobPlaceSettings:
    """One place for blobs: a folder, or a bucket of an S3-compatible provider."""

    disk_location: Path | None = setting(  # noqa: RUF009
        "PDS_BLOBSTORE_DISK_LOCATION",
        "Folder of the blobs; `blobs` in the data folder when unset and there is no bucket.",
    )
    disk_temporary_location: Path | None = setting(  # noqa: RUF009
        "PDS_BLOBSTORE_DISK_TMP_LOCATION",
        "Folder of unfinished uploads; on the same file system as the blobs if these are on disk.",
    )
    s3_bucket: str | None = setting(
        "PDS_BLOBSTORE_S3_BUCKET", "Bucket of the blobs, instead of a folder."
    )
    s3_region: str = setting(
        "PDS_BLOBSTORE_S3_REGION", "Region of the bucket.", default="us-east-1"
    )
    s3_endpoint: str | None = setting(
        "PDS_BLOBSTORE_S3_ENDPOINT",
        "URL of the provider, without the bucket; AWS when unset.",
        parse=parse_url,
    )
    s3_force_path_style: bool = setting(
        "PDS_BLOBSTORE_S3_FORCE_PATH_STYLE",
        "Name the bucket in the path instead of the host name.",
        default=False,
    )
    s3_access_key_id: str | None = setting(
        "PDS_BLOBSTORE_S3_ACCESS_KEY_ID",
        "Key of the bucket; without it what `AWS_*` variables or the machine's role say.",
    )
    s3_secret_access_key: str | None = setting(
        "PDS_BLOBSTORE_S3_SECRET_ACCESS_KEY", "Secret of that key.", secret=True
    )
    s3_upload_timeout_s: float = setting(
        "PDS_BLOBSTORE_S3_UPLOAD_TIMEOUT_MS",
        "Milliseconds that bringing one blob to the bucket may take.",
        default=300.0,
        parse=ms_to_s,
    )
    s3_request_timeout_s: float = setting(
        "PDS_BLOBSTORE_S3_REQUEST_TIMEOUT_MS",
        "Milliseconds that one request to the bucket may take; it is repeated up to three times.",
        default=30.0,
        parse=ms_to_s,
    )
    s3_folder: str = setting(
        "PDS_BLOBSTORE_S3_FOLDER", "Beginning of all keys in the bucket.", default="blobs"
    )
    s3_ca_file: Path | None = setting(  # noqa: RUF009
        "PDS_BLOBSTORE_S3_CA_FILE", "Certificates (PEM) to trust besides the usual ones."
    )
    s3_presigned_reads: bool = setting(
        "PDS_BLOBSTORE_S3_PRESIGNED_READS",
        "Send readers of large blobs to the bucket by a URL that is good for five minutes. Saves"
        " traffic; the bytes are then not checked here, and come without their media type.",
        default=False,
    )

    @property
    def is_set(self) -> bool:
        """Whether this place is there at all."""
        return self != type(self)()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationSettings:
    """How several places work together."""

    write_quorum: int | None = setting(
        "PDS_BLOBSTORE_WRITE_QUORUM",
        "How many places must have a blob before its upload is answered; more than half when"
        " unset. Places beyond the first are set by `PDS_BLOBSTORE_2_*` and `PDS_BLOBSTORE_3_*`.",
    )
