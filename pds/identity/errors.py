"""What can be said about an identity that could not be had.

A definite no is one of the classes here, all of them `NotResolvable`; "could not find out" is
`pds.errors.Unreachable`. Nothing else leaves this package for a resolution (ID-36).
"""

from pds.errors import NotResolvable, Rejected, Unreachable


class DidNotFound(NotResolvable):
    """No such DID, or its document is none."""


class DidDeactivated(NotResolvable):
    """The DID existed and was ended (a PLC tombstone)."""


class UnsupportedDidMethod(DidNotFound):
    """A well-formed DID of a method or form that this network does not use (DM-66, DM-67)."""


class HandleNotFound(NotResolvable):
    """The handle names no DID, or more than one."""


class PlcRejected(Rejected):
    """The PLC directory understood the operation and refused it."""


class PlcRateLimited(PlcRejected):
    """The PLC directory refuses further operations for this identity for a while (ID-59)."""


class PlcOutcomeUnknown(Unreachable):
    """An operation was sent, and whether the directory took it could not be found out.

    The caller asks again later (`PlcClient.has_operation`) before it tells anybody anything.
    """
