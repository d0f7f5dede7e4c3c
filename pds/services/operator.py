"""What operators and moderators may call: one bundle, so that it is clear what asks for their name.

Every change that is ordered through these takes an `Order` and leaves a row in the audit trail.
"""

from dataclasses import dataclass

from pds.services.admin_accounts import AdminAccounts
from pds.services.admin_creation import AdminCreation
from pds.services.admin_lists import AdminLists
from pds.services.audit import AuditTrail
from pds.services.moderation import Moderation


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """The services of operators."""

    accounts: AdminAccounts
    audit: AuditTrail
    creation: AdminCreation
    lists: AdminLists
    moderation: Moderation
