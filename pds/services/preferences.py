"""Private preferences of clients, kept with the account (app.bsky.actor.get/putPreferences).

One namespace is served, `app.bsky`. A put replaces all of it that the caller may see: an app
password sees no personal details (birth date), so its puts leave them as they are. The age facts
(`declaredAgePref`) are derived from the birth date at reading; what a client sends back is dropped.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, Final

import orjson

from pds.errors import invalid_request
from pds.protocol.data import Json
from pds.services.principal import Principal
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.preferences import Preference, list_preferences, replace_preferences

NAMESPACE: Final = "app.bsky"
PERSONAL_DETAILS: Final = "app.bsky.actor.defs#personalDetailsPref"
DECLARED_AGE: Final = "app.bsky.actor.defs#declaredAgePref"

MAX_PREFERENCES: Final = 1_000
MAX_PREFERENCE_BYTES: Final = 100_000
"""One item; the largest seen in use are lists of muted words of some 10 KB."""
MAX_ALL_PREFERENCES_BYTES: Final = 500_000
"""All items of an account together."""

_AGES: Final = (13, 16, 18)


class Preferences:
    """Reads and replaces the preferences of accounts."""

    def __init__(self, *, engine: Engine, wall: Clock) -> None:
        """`wall` tells ages only, so preferences can be read while the clock is in doubt."""
        self._engine = engine
        self._wall = wall

    async def get(self, principal: Principal) -> list[Json]:
        """Return what this caller may see, in the order it was put."""
        return await self._get(principal.aid or 0, is_full=principal.is_full)

    async def get_for_moderator(self, aid: int) -> list[Json]:
        """Return all preferences of an account, for the moderation service."""
        return await self._get(aid, is_full=True)

    async def _get(self, aid: int, *, is_full: bool) -> list[Json]:
        stored = await self._engine.read("preference.get", list_preferences, aid)
        items: list[Json] = []
        declared: Json = None
        for preference in stored:
            if preference.type == PERSONAL_DETAILS:
                declared = _declared_age(preference, self._wall.now_us())
                if not is_full:
                    continue
            if _is_in_namespace(preference.type):
                items.append(orjson.loads(preference.value))
        if declared is not None:
            items.append(declared)
        return items

    async def put(self, principal: Principal, items: Sequence[Json]) -> None:
        """Replace the whole namespace that this caller may see.

        Raises: RequestError `InvalidRequest` for items without `$type`, of another namespace, too
        many or too large, or for personal details from an app password.
        """
        preferences = check_preferences(items, is_full=principal.is_full)
        aid = principal.aid or 0
        await self._engine.transact(
            "preference.put", _put, aid, preferences, principal.is_full, accounts=(aid,)
        )


def check_preferences(items: Sequence[Json], *, is_full: bool) -> tuple[Preference, ...]:
    """Return the items in stored form, read-only ones left out."""
    if len(items) > MAX_PREFERENCES:
        raise invalid_request(f"At most {MAX_PREFERENCES} preferences are kept")
    preferences = []
    total_bytes = 0
    for item in items:
        kind = item.get("$type") if isinstance(item, dict) else None
        if not isinstance(kind, str) or not kind:
            raise invalid_request("Preference is missing a $type")
        if not _is_in_namespace(kind):
            raise invalid_request(f"Some preferences are not in the {NAMESPACE} namespace")
        if kind == DECLARED_AGE:
            continue
        if kind == PERSONAL_DETAILS and not is_full:
            raise invalid_request(f"Do not have authorization to set preferences: {kind}")
        value = orjson.dumps(item)
        if len(value) > MAX_PREFERENCE_BYTES:
            raise invalid_request(f"A preference is larger than {MAX_PREFERENCE_BYTES} bytes")
        total_bytes += len(value)
        preferences.append(Preference(kind, value))
    if total_bytes > MAX_ALL_PREFERENCES_BYTES:
        raise invalid_request(
            f"Preferences are larger than {MAX_ALL_PREFERENCES_BYTES} bytes together"
        )
    return tuple(preferences)


def _put(txn: Txn, aid: int, preferences: tuple[Preference, ...], is_full: bool) -> None:
    kept = [
        preference
        for preference in list_preferences(txn, aid)
        if not _is_in_namespace(preference.type)
        or (preference.type == PERSONAL_DETAILS and not is_full)
    ]
    replace_preferences(txn, aid, (*kept, *preferences))


def _declared_age(personal_details: Preference, now_us: int) -> dict[str, Any] | None:
    """Derive the age facts, or None when the birth date is no date."""
    text = orjson.loads(personal_details.value).get("birthDate")
    try:
        born = datetime.fromisoformat(text).date()
    except (TypeError, ValueError):
        return None
    age = _age_at(born, datetime.fromtimestamp(now_us / 1_000_000, UTC).date())
    return {"$type": DECLARED_AGE, **{f"isOverAge{limit}": age >= limit for limit in _AGES}}


def _age_at(born: date, today: date) -> int:
    had_birthday = (today.month, today.day) >= (born.month, born.day)
    return today.year - born.year - (not had_birthday)


def _is_in_namespace(kind: str) -> bool:
    return kind.startswith(f"{NAMESPACE}.")
