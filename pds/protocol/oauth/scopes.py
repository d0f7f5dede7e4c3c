"""Permissions as text: `resource[:positional][?key=value...]`, and what they allow.

Here is what a client has to understand of what it was granted: `account`, `identity` and `rpc`, and
the broad `transition:` scopes of before. What cannot be read allows nothing.

Spec: (OAUTH-80, OAUTH-81, OAUTH-82)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self
from urllib.parse import unquote

ANY: Final = "*"

_POSITIONAL: Final[Mapping[str, str]] = MappingProxyType(
    {"account": "attr", "identity": "attr", "rpc": "lxm"}
)
_KEYS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "account": frozenset({"attr", "action"}),
        "identity": frozenset({"attr"}),
        "rpc": frozenset({"lxm", "aud"}),
    }
)
_MULTIPLE: Final = frozenset({("account", "action"), ("rpc", "lxm")})
_ACTIONS: Final = frozenset({"read", "manage"})


@dataclass(frozen=True, slots=True)
class _Permission:
    resource: str
    values: Mapping[str, tuple[str, ...]]

    def one(self, key: str) -> str | None:
        values = self.values.get(key, ())
        return values[0] if len(values) == 1 else None


@dataclass(frozen=True, slots=True)
class ScopeSet:
    """What was granted."""

    scopes: frozenset[str]
    permissions: tuple[_Permission, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a list of scopes, divided by spaces."""
        scopes = frozenset(part for part in text.split(" ") if part)
        parsed = (_parse(scope) for scope in sorted(scopes))
        return cls(scopes, tuple(permission for permission in parsed if permission is not None))

    def allows_account(self, attr: str, action: str) -> bool:
        """Whether something of the account may be read or managed; who may manage may read."""
        if (attr, action) == ("email", "read") and "transition:email" in self.scopes:
            return True
        return any(
            permission.one("attr") == attr
            and bool({action, "manage"} & set(permission.values.get("action", ("read",))))
            for permission in self._of("account")
        )

    def allows_identity(self, attr: str) -> bool:
        """Whether the handle, or all of the identity (`*`), may be changed."""
        return any(permission.one("attr") in (attr, ANY) for permission in self._of("identity"))

    def allows_rpc(self, lxm: str, aud: str) -> bool:
        """Whether a method of a service may be called in the account's name."""
        if "transition:generic" in self.scopes and not lxm.startswith("chat.bsky."):
            return True
        return any(
            permission.one("aud") in (aud, ANY)
            and bool({lxm, ANY} & set(permission.values.get("lxm", ())))
            for permission in self._of("rpc")
        )

    def _of(self, resource: str) -> tuple[_Permission, ...]:
        return tuple(one for one in self.permissions if one.resource == resource)


def _parse(scope: str) -> _Permission | None:
    head, mark, query = scope.partition("?")
    resource, colon, positional = head.partition(":")
    keys = _KEYS.get(resource)
    if keys is None or (mark and not query):
        return None
    pairs = [part.partition("=") for part in query.split("&")] if query else []
    found: dict[str, list[str]] = {}
    if colon:
        found[_POSITIONAL[resource]] = [unquote(positional)]
    for key, equals, value in pairs:
        if key not in keys or not equals or (colon and key == _POSITIONAL[resource]):
            return None
        found.setdefault(key, []).append(unquote(value))
    permission = _Permission(resource, {key: tuple(values) for key, values in found.items()})
    return permission if _is_valid(permission) else None


def _is_valid(permission: _Permission) -> bool:
    resource, values = permission.resource, permission.values
    if any(
        len(found) > 1 and (resource, key) not in _MULTIPLE for key, found in values.items()
    ) or any(not value for found in values.values() for value in found):
        return False
    if resource == "rpc":
        is_all = ANY in values.get("lxm", ()) and permission.one("aud") == ANY
        return "lxm" in values and "aud" in values and not is_all
    return "attr" in values and set(values.get("action", ())) <= _ACTIONS
