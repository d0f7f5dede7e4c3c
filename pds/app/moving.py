"""Makes the services by which accounts move in."""

from pds.app.blobstores import SPOOL_FOLDER
from pds.app.foundation import Foundation
from pds.services.account_cache import AccountCache
from pds.services.repo_import import ImportSettings, RepoImports


def build_repo_imports(base: Foundation, cache: AccountCache, *, clock_id: int) -> RepoImports:
    """Make the import of repos; what arrives waits where uploads of blobs do."""
    config = base.config
    folder = config.blobstore.disk_temporary_location or config.data.directory / SPOOL_FOLDER
    return RepoImports(
        engine=base.engine,
        clock=base.clock,
        clock_id=clock_id,
        keystore=base.keystore,
        cache=cache,
        plc=base.plc,
        documents=base.resolver,
        settings=ImportSettings(
            accepting=config.sign_up.accepting_imports,
            folder=folder,
            is_alone=not config.data.is_shared,
        ),
    )
