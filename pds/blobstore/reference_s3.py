"""Reads the blobs of a reference PDS in its bucket; the other half of `reference`."""

from collections.abc import AsyncIterator
from typing import Final

import obstore
from obstore.exceptions import BaseError

from pds.blobstore.reference import Place, SourceBlobMissing
from pds.blobstore.s3 import S3Settings, open_bucket
from pds.errors import Unavailable

_FOLDERS: Final = {"kept": "blocks", "temporary": "tmp", "quarantine": "quarantine"}


class BucketBlobs:
    """Blobs in a bucket, as `PDS_BLOBSTORE_S3_BUCKET` names it."""

    def __init__(self, settings: S3Settings) -> None:
        self._store = open_bucket(settings)

    async def open(self, did: str, place: Place) -> AsyncIterator[bytes]:
        """Yield the bytes of an object."""
        try:
            found = await obstore.get_async(self._store, _path(did, place))
            async for chunk in found.stream():
                yield bytes(chunk)
        except FileNotFoundError as error:
            raise SourceBlobMissing(f"{place.name} is not in the bucket") from error
        except BaseError as error:
            raise Unavailable(f"cannot read blob {place.name} from the bucket") from error

    async def has(self, did: str, place: Place) -> bool:
        """Whether the object is there."""
        try:
            await obstore.head_async(self._store, _path(did, place))
        except FileNotFoundError:
            return False
        except BaseError as error:
            raise Unavailable(f"cannot look for blob {place.name} in the bucket") from error
        return True


def _path(did: str, place: Place) -> str:
    return f"{_FOLDERS[place.area]}/{did}/{place.name}"
