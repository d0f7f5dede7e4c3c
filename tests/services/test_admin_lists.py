"""What operators list: the sessions of an account, page by page."""

from pathlib import Path

from pds.services.admin_lists import AdminLists
from pds.services.app_passwords import AppPasswords
from tests.services.account_host import ALICE, PASSWORD, session_host

REFRESH_S = 91 * 86_400


async def test_sessions_are_listed_once_each_until_they_expire(tmp_path: Path) -> None:
    """A renewed session has several tokens and is one line; pages follow one another."""
    async with session_host(tmp_path) as host:
        aid = await host.add_account()
        lists = AdminLists(engine=host.engine, clock=host.clock)
        phone = await AppPasswords(
            engine=host.engine, clock=host.clock, sessions=host.sessions
        ).create(aid, "phone", privileged=False)
        views = [await host.sessions.login("alice.pds.test", PASSWORD) for _ in range(3)]
        await host.sessions.login("alice.pds.test", phone.password)
        assert views[0].tokens is not None
        await host.sessions.refresh(views[0].tokens.refresh)
        found, cursor = await lists.sessions(ALICE, cursor=None, limit=3)
        rest, end = await lists.sessions(ALICE, cursor=cursor, limit=3)
        assert (len(found), len(rest), end) == (3, 1, None)
        listed = [one for one in [*found, *rest] if isinstance(one, dict)]
        names = sorted(str(one["appPassword"]) for one in listed)
        assert names == ["None", "None", "None", "phone"]
        host.clock.advance(REFRESH_S)
        assert await lists.sessions(ALICE, cursor=None, limit=3) == ([], None)
