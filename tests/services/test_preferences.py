"""Preferences: replaced as a whole, personal details apart, limits."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import RequestError
from pds.services import preferences as module
from pds.services.preferences import Preferences
from pds.services.principal import Principal, PrincipalKind, Scope
from pds.store.preferences import Preference, list_preferences, replace_preferences
from tests.services.account_host import SessionHost, session_host

FULL = Principal(PrincipalKind.SESSION, aid=1, scope=Scope.ACCESS)
APP = Principal(PrincipalKind.SESSION, aid=1, scope=Scope.APP_PASS_PRIVILEGED)
BIRTH = {
    "$type": "app.bsky.actor.defs#personalDetailsPref",
    "birthDate": "2000-10-10T00:00:00.000Z",
}
ADULT = {"$type": "app.bsky.actor.defs#adultContentPref", "enabled": True}
LABEL = {"$type": "app.bsky.actor.defs#contentLabelPref", "label": "x", "visibility": "warn"}
AGE = "app.bsky.actor.defs#declaredAgePref"


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[SessionHost]:
    async with session_host(tmp_path) as host:
        yield host


@pytest.fixture
def preferences(host: SessionHost) -> Preferences:
    return Preferences(engine=host.engine, wall=host.clock)


async def test_put_replaces_everything_and_keeps_the_order(preferences: Preferences) -> None:
    await preferences.put(FULL, [LABEL, ADULT, LABEL])
    assert await preferences.get(FULL) == [LABEL, ADULT, LABEL]
    await preferences.put(FULL, [ADULT])
    assert await preferences.get(FULL) == [ADULT]
    assert await preferences.get(Principal(PrincipalKind.SESSION, aid=2)) == []
    await preferences.put(FULL, [])
    assert await preferences.get(FULL) == []


async def test_app_password_neither_sees_nor_loses_personal_details(
    preferences: Preferences,
) -> None:
    await preferences.put(FULL, [BIRTH, ADULT])
    seen = await preferences.get(APP)
    assert ADULT in seen
    assert BIRTH not in seen
    await preferences.put(APP, [*seen, LABEL])
    kept: list[Any] = await preferences.get(FULL)
    assert [item["$type"] for item in kept] == [
        BIRTH["$type"],
        ADULT["$type"],
        LABEL["$type"],
        AGE,
    ]
    with pytest.raises(RequestError) as refused:
        await preferences.put(APP, [BIRTH])
    assert refused.value.name == "InvalidRequest"


@pytest.mark.parametrize(
    ("birth_date", "ages"),
    [
        ("2007-10-09T08:53:20Z", (True, True, True)),
        ("2007-10-10T00:00:00Z", (True, True, False)),
        ("2012-01-01", (True, False, False)),
        ("2020-01-01T00:00:00.000Z", (False, False, False)),
    ],
)
async def test_age_is_derived_from_the_birth_date(
    preferences: Preferences, birth_date: str, ages: tuple[bool, ...]
) -> None:
    """The clock of the tests stands at 2025-10-09."""
    await preferences.put(FULL, [{**BIRTH, "birthDate": birth_date}])
    expected = dict(zip(("isOverAge13", "isOverAge16", "isOverAge18"), ages, strict=True))
    assert (await preferences.get(APP)) == [{"$type": AGE, **expected}]


@pytest.mark.parametrize("birth_date", ["not a date", 7, None, "9999-99-99"])
async def test_unusable_birth_date_declares_nothing(
    preferences: Preferences, birth_date: object
) -> None:
    await preferences.put(FULL, [{**BIRTH, "birthDate": birth_date}])
    assert await preferences.get(APP) == []


async def test_declared_age_cannot_be_written(preferences: Preferences) -> None:
    await preferences.put(FULL, [{"$type": AGE, "isOverAge18": True}, ADULT])
    assert await preferences.get(FULL) == [ADULT]


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"$type": ""},
        {"$type": 1},
        {"$type": None},
        "text",
        None,
        [ADULT],
        {"$type": "com.example.pref"},
        {"$type": "app.bskyx.pref"},
        {"$type": "app.bsky"},
    ],
)
async def test_items_without_type_or_of_another_namespace_change_nothing(
    preferences: Preferences, item: Any
) -> None:
    await preferences.put(FULL, [LABEL])
    with pytest.raises(RequestError) as refused:
        await preferences.put(FULL, [ADULT, item])
    assert (refused.value.name, refused.value.status) == ("InvalidRequest", 400)
    assert await preferences.get(FULL) == [LABEL]


async def test_rows_of_another_namespace_stay(host: SessionHost, preferences: Preferences) -> None:
    other = Preference("com.example.pref", b'{"$type":"com.example.pref"}')
    await host.engine.transact("test", replace_preferences, 1, [other])
    await preferences.put(FULL, [ADULT])
    assert await preferences.get(FULL) == [ADULT]
    assert other in await host.engine.read("test", list_preferences, 1)


async def test_number_and_size_are_limited(preferences: Preferences) -> None:
    item_bytes = module.MAX_PREFERENCE_BYTES - len('{"$type":"app.bsky.a","v":""}')
    largest = {"$type": "app.bsky.a", "v": "x" * item_bytes}
    await preferences.put(FULL, [largest] * 5)
    for items in (
        [ADULT] * (module.MAX_PREFERENCES + 1),
        [{**largest, "v": largest["v"] + "x"}],
        [*[largest] * 5, ADULT],
    ):
        with pytest.raises(RequestError) as refused:
            await preferences.put(FULL, items)
        assert refused.value.name == "InvalidRequest"
    await preferences.put(FULL, [ADULT] * module.MAX_PREFERENCES)
