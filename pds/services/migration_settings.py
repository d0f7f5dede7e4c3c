"""What the operator can set about moves."""

from dataclasses import dataclass

from pds.services.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationSettings:
    """How much is moved at once, and how large it may be."""

    parallel: int = setting(
        "PDS_MIGRATION_PARALLEL", "Moves that one node works on at the same time.", default=4
    )
    parallel_blobs: int = setting(
        "PDS_MIGRATION_PARALLEL_BLOBS", "Blobs of one move that are copied at a time.", default=6
    )
    blob_bytes: int = setting(
        "PDS_MIGRATION_BLOB_LIMIT",
        "Largest blob taken over from another host; it may be above the limit for uploads.",
        default=100 * 1024 * 1024,
    )
    repo_bytes: int = setting(
        "PDS_MIGRATION_REPO_LIMIT",
        "Largest repo taken over from another host, in bytes of its CAR.",
        default=2 * 1024 * 1024 * 1024,
    )
    switches_per_hour: int = setting(
        "PDS_MIGRATION_SWITCHES_PER_HOUR",
        "Accounts that become active here by a move in an hour, all nodes together. Each makes some"
        " four events, and relays take 1,500 events an hour from a host that is new to them.",
        default=300,
    )
