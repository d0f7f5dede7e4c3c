"""Makes the services that keep accounts their owners' own: archives, keys, watch, rescue."""

from pds.app.archive_places import (
    WORK_FOLDER,
    archive_folder,
    kept_archives,
    open_archive_bucket,
)
from pds.app.foundation import Foundation
from pds.app.migration import MovingParts
from pds.services.account_mails import AccountMails
from pds.services.archive_keeping import ArchiveRounds
from pds.services.archives import Archives
from pds.services.countermands import Countermands
from pds.services.keeping import Keeping
from pds.services.plc_watch import PlcWatch
from pds.services.recovery_keys import RecoveryKeys
from pds.services.rescue import Rescue


def build_keeping(base: Foundation, parts: MovingParts, mails: AccountMails) -> Keeping:
    """Make the services."""
    config, engine, clock = base.config, base.engine, base.clock
    cache, journal = parts.accounts.cache, parts.identity_journal
    signer = base.rotation_signer
    archives = Archives(
        engine=engine,
        clock=clock,
        keystore=base.keystore,
        accounts=cache,
        blobs=parts.blobs,
        preferences=parts.preferences,
        plc=base.plc,
        documents=base.resolver,
        public_url=config.public_url,
    )
    return Keeping(
        archives=archives,
        archive_rounds=ArchiveRounds(
            engine=engine,
            clock=clock,
            archives=archives,
            folder=archive_folder(config),
            bucket=open_archive_bucket(config),
            work=config.data.directory / WORK_FOLDER,
            settings=config.archives,
        ),
        kept_archives=kept_archives(config, in_data_folder=True),
        countermands=Countermands(
            engine=engine,
            clock=clock,
            accounts=cache,
            plc=base.plc,
            journal=journal,
            rotation_signer=signer,
        ),
        plc_watch=PlcWatch(
            engine=engine,
            clock=clock,
            plc=base.plc,
            mails=mails,
            server_key=signer.public_key.did_key,
            operator_address=config.plc_watch.operator_address or config.host.contact_email,
            settings=config.plc_watch,
        ),
        recovery_keys=RecoveryKeys(
            accounts=cache,
            plc=base.plc,
            journal=journal,
            rotation_signer=signer,
            operator_key=config.identity.recovery_did_key,
        ),
        rescue=Rescue(
            engine=engine,
            clock=clock,
            creation=parts.accounts.creation,
            imports=parts.repo_imports,
            blobs=parts.blobs,
            preferences=parts.preferences,
            plc=base.plc,
            operations=parts.plc_operations,
            lifecycle=parts.lifecycle,
            http=base.trusted,
            guarded=base.proxy_guarded,
        ),
    )
