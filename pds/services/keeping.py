"""What keeps accounts their owners' own, in one bundle: archives, keys, watch, rescue."""

from dataclasses import dataclass

from pds.services.archive_keeping import ArchiveRounds, KeptArchives
from pds.services.archives import Archives
from pds.services.countermands import Countermands
from pds.services.plc_watch import PlcWatch
from pds.services.recovery_keys import RecoveryKeys
from pds.services.rescue import Rescue


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """The services."""

    archives: Archives
    archive_rounds: ArchiveRounds
    kept_archives: KeptArchives
    countermands: Countermands
    plc_watch: PlcWatch
    recovery_keys: RecoveryKeys
    rescue: Rescue
