"""Random lives of accounts, held against a small model of what must be true (ACC-3, promise D3).

The model knows what was done, never what the server thinks: which accounts there are, which columns
of their state are set, and of every token ever handed out whether its session was ended, by what,
and when it expires. After each step:

* the last `#account` that a reader heard of each DID says what getRepoStatus says;
* content (`#commit`, `#sync`) was only heard of accounts that were announced as active, with revs
  that rise; a replay hands out content of active accounts only;
* the last event of a deleted account says so, and after the sweep it is the only one;
* each access token works or fails as the model says, and so does the password.

`race` lets several acts on one account loose at once. Their order is unknown, so the model reads
afterwards which state came out and forgets the tokens; the firehose has to be right all the same.
"""

import asyncio
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pds.errors import RequestError
from pds.protocol.frames import decode_frame
from pds.services.principal import Scope
from pds.store.accounts import AccountStatus, get_account_by_aid
from tests.services.life_host import PASSWORD, LifeHost, life_host

NAMES = ("alice", "bob", "mover")
MOVER = "did:web:mover.example.com"
US = 1_000_000
HOUR_US = 3600 * US
DAY_US = 24 * HOUR_US
ACCESS_US = 2 * HOUR_US
GRACE_US = 2 * HOUR_US
MOVE_US = 30 * DAY_US

names = st.sampled_from(NAMES)
picks = st.integers(0, 99)


@dataclass
class Refresh:
    """A refresh token; `next` is what it was exchanged for.

    `says_until_us` is the end that the token itself names; once exchanged it ends sooner.
    """

    token: str
    says_until_us: int
    expires_us: int = 0
    next: "Refresh | None" = None

    def __post_init__(self) -> None:
        self.expires_us = self.says_until_us


@dataclass
class Access:
    token: str
    expires_us: int


@dataclass
class Session:
    """One login with all tokens of it."""

    life: "Life"
    scope: Scope
    app_password: str | None = None
    is_ended: bool = False
    accesses: list[Access] = field(default_factory=list)
    refreshes: list[Refresh] = field(default_factory=list)


@dataclass
class Life:
    """One account from its opening to its end."""

    aid: int
    did: str
    is_deactivated: bool
    delete_after: int | None
    is_takendown: bool = False
    is_suspended: bool = False
    is_gone: bool = False
    app_passwords: dict[str, tuple[str, bool]] = field(default_factory=dict)

    @property
    def is_stopped(self) -> bool:
        return self.is_takendown or self.is_suspended

    @property
    def status(self) -> str | None:
        if self.is_takendown:
            return "takendown"
        if self.is_suspended:
            return "suspended"
        return "deactivated" if self.is_deactivated else None


@dataclass
class Heard:
    """What a reader knows of a DID; `status` is None for active, `told` False before any word."""

    told: bool = False
    status: str | None = None
    revs: dict[int, str] = field(default_factory=dict)


class AccountLives(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.folder = tempfile.TemporaryDirectory()
        self.host: LifeHost = self.run(
            self.stack.enter_async_context(life_host(Path(self.folder.name)))
        )
        self.lives: dict[str, Life] = {}
        self.gone: list[Life] = []
        self.sessions: list[Session] = []
        self.heard: dict[str, Heard] = {}
        self.heard_count = 0
        self.opened = 0

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()
        self.folder.cleanup()

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    def holder_of(self, did: str) -> Life | None:
        """Return the account that a DID has now."""
        return next((life for life in self.lives.values() if life.did == did), None)

    def why_ended(self, session: Session) -> str:
        """Return what an access token is told whose session is no more."""
        holder = self.holder_of(session.life.did)
        if holder is None:
            return "AccountNotFound"
        is_stopped = holder.is_stopped and session.scope is not Scope.TAKENDOWN
        return "AccountTakedown" if is_stopped else "ExpiredToken"

    def refused(self, call: Any) -> str:
        """Return the name of the refusal that a call must end in."""
        try:
            self.run(call)
        except RequestError as error:
            return error.name
        raise AssertionError("not refused")

    @property
    def now_us(self) -> int:
        return self.host.clock.now_us()

    def session_at(self, pick: int) -> Session | None:
        return self.sessions[pick % len(self.sessions)] if self.sessions else None

    def end(self, life: Life, *, app_password: str | None = None) -> None:
        for session in self.sessions:
            if session.life is life and app_password in (None, session.app_password):
                session.is_ended = True

    def bury(self, name: str) -> None:
        life = self.lives.pop(name)
        life.is_gone = True
        self.end(life)
        self.gone.append(life)

    # Beginnings

    @initialize()
    def begin(self) -> None:
        for name in NAMES:
            self.need(name)

    @rule(name=names)
    def open_again(self, name: str) -> None:
        self.need(name)
        assert self.refused(self.host.open(name)) == "HandleNotAvailable"

    def need(self, name: str) -> Life:
        """Return the account of that name, opened and signed in to if there is none."""
        if name in self.lives:
            return self.lives[name]
        self.opened += 1
        moves = name == "mover"
        did = MOVER if moves else f"did:plc:{name}{self.opened}".ljust(32, "a")
        account = self.run(self.host.open(name, did=did, is_active=not moves))
        self.lives[name] = Life(account.aid, did, moves, self.now_us + MOVE_US if moves else None)
        self.login(name, allow_takendown=False)
        return self.lives[name]

    # Credentials

    @rule(name=names, allow_takendown=st.booleans())
    def sign_in(self, name: str, allow_takendown: bool) -> None:
        self.need(name)
        self.login(name, allow_takendown)

    def login(self, name: str, allow_takendown: bool) -> None:
        life = self.lives[name]
        call = self.host.login(name, allow_takendown=allow_takendown)
        if life.is_stopped and not allow_takendown:
            assert self.refused(call) == "AccountTakedown"
        else:
            scope = Scope.TAKENDOWN if life.is_stopped else Scope.ACCESS
            self.remember(Session(life, scope), self.run(call))

    def remember(self, session: Session, view: Any) -> None:
        assert view.status.value == (session.life.status or "active")
        session.accesses.append(Access(view.tokens.access, self.now_us + ACCESS_US))
        lasts_us = ACCESS_US if session.scope is Scope.TAKENDOWN else 90 * DAY_US
        session.refreshes.append(Refresh(view.tokens.refresh, self.now_us + lasts_us))
        self.sessions.append(session)

    @rule(name=names, privileged=st.booleans())
    def make_app_password(self, name: str, privileged: bool) -> None:
        life = self.need(name)
        label = f"app {len(life.app_passwords)}"
        made = self.run(self.host.app_passwords.create(life.aid, label, privileged=privileged))
        life.app_passwords[label] = (made.password, privileged)
        self.login_with(life, label)

    @rule(name=names, pick=picks)
    def login_with_app_password(self, name: str, pick: int) -> None:
        life = self.need(name)
        if life.app_passwords:
            self.login_with(life, list(life.app_passwords)[pick % len(life.app_passwords)])

    def login_with(self, life: Life, label: str) -> None:
        password, privileged = life.app_passwords[label]
        call = self.host.sessions.login(life.did, password)
        if life.is_stopped or not password:
            assert self.refused(call) == "AuthenticationRequired"
            return
        scope = Scope.APP_PASS_PRIVILEGED if privileged else Scope.APP_PASS
        self.remember(Session(life, scope, label), self.run(call))

    @rule(name=names, pick=picks)
    def revoke_app_password(self, name: str, pick: int) -> None:
        life = self.need(name)
        if life.app_passwords:
            label = list(life.app_passwords)[pick % len(life.app_passwords)]
            self.run(self.host.app_passwords.revoke(life.aid, label))
            life.app_passwords[label] = ("", False)
            self.end(life, app_password=label)

    @precondition(lambda self: self.sessions)
    @rule(pick=picks, which=picks)
    def refresh(self, pick: int, which: int) -> None:
        session = self.session_at(pick)
        refresh = session.refreshes[which % len(session.refreshes)]
        life = session.life
        call = self.host.sessions.refresh(refresh.token)
        is_dead = session.is_ended or session.scope is Scope.TAKENDOWN
        if refresh.says_until_us <= self.now_us:
            assert self.refused(call) == "ExpiredToken"
        elif is_dead or refresh.expires_us <= self.now_us:
            holder = self.holder_of(life.did)
            is_stopped = holder is not None and holder.is_stopped
            assert self.refused(call) == ("AccountTakedown" if is_stopped else "ExpiredToken")
        elif life.is_stopped:
            assert self.refused(call) == "AccountTakedown"
        else:
            view = self.run(call)
            session.accesses.append(Access(view.tokens.access, self.now_us + ACCESS_US))
            if refresh.next is None:
                refresh.next = Refresh(view.tokens.refresh, self.now_us + 90 * DAY_US)
                refresh.expires_us = min(refresh.expires_us, self.now_us + GRACE_US)
                session.refreshes.append(refresh.next)

    @precondition(lambda self: self.sessions)
    @rule(pick=picks)
    def logout(self, pick: int) -> None:
        session = self.session_at(pick)
        self.run(self.host.sessions.logout(session.refreshes[0].token))
        session.is_ended = True

    # States

    @rule(name=names, days=st.sampled_from([None, 0, 2, 5]))
    def deactivate(self, name: str, days: int | None) -> None:
        life = self.need(name)
        asked_us = None if days is None else self.now_us + max(days, 1) * DAY_US
        seconds, micros = divmod(self.now_us + (days or 0) * DAY_US, US)
        date = _rfc3339(seconds, micros) if days is not None else None
        self.run(self.host.life.deactivate(life.aid, delete_after=date))
        life.is_deactivated, life.delete_after = True, asked_us

    @rule(name=names, points_here=st.booleans())
    def activate(self, name: str, points_here: bool) -> None:
        life = self.need(name)
        told = self.host.identities.told[life.did]
        endpoint = told.endpoint
        if not points_here:
            told.endpoint = "https://elsewhere.example"
        call = self.host.life.activate(life.aid)
        if life.is_stopped:
            assert self.refused(call) == "AccountTakedown"
        elif life.is_deactivated and not points_here:
            assert self.refused(call) == "InvalidRequest"
        else:
            self.run(call)
            life.is_deactivated = False
            life.delete_after = None
        told.endpoint = endpoint

    @rule(name=names, on=st.booleans())
    def take_down(self, name: str, on: bool) -> None:
        life = self.need(name)
        self.run(self.host.set_takedown(life.aid, "case" if on else None))
        if on and not life.is_takendown:
            self.end(life)
        life.is_takendown = on

    @rule(name=names, on=st.booleans())
    def suspend(self, name: str, on: bool) -> None:
        life = self.need(name)
        self.run(self.host.set_suspended(life.aid, is_suspended=on))
        if on and not life.is_suspended:
            self.end(life)
        life.is_suspended = on

    # Ends

    @rule(name=names, way=st.sampled_from(["owner", "wrong code", "operator"]))
    def delete(self, name: str, way: str) -> None:
        life = self.need(name)
        if way == "operator":
            self.run(self.host.delete_now(life.aid))
        else:
            code = self.run(self.host.issue_code(life.aid))
            given = code if way == "owner" else "AAAAA-AAAAA"
            call = self.host.life.delete(life.did, password=PASSWORD, code=given)
            if way == "wrong code":
                assert self.refused(call) == "InvalidToken"
                return
            self.run(call)
        self.bury(name)

    @rule()
    def sweep(self) -> None:
        overdue = [
            name
            for name, life in self.lives.items()
            if life.is_deactivated and (life.delete_after or 1 << 62) <= self.now_us
        ]
        assert self.run(self.host.life.sweep_overdue(self.now_us)) == len(overdue)
        for name in overdue:
            self.bury(name)
        self.run(self.host.life.sweep_deleted())
        self.run(self.host.collect_garbage())
        self.run(self.host.sessions.sweep())
        for life in self.gone:
            assert len(self.run(self.host.stored(life.aid))) == 1

    # Everything else

    @rule(name=names)
    def write(self, name: str) -> None:
        life = self.need(name)
        call = self.host.write(life.aid)
        match life.status:
            case None:
                self.run(call)
            case "deactivated":
                assert self.refused(call) == "AccountDeactivated"
            case _:
                assert self.refused(call) == "AccountTakedown"

    @rule(hours=st.sampled_from([0.01, 1, 3, 25]))
    def wait(self, hours: float) -> None:
        self.host.clock.advance(hours * 3600)

    @rule()
    def restart(self) -> None:
        self.host.restart()

    @rule(
        name=names,
        acts=st.lists(
            st.sampled_from(["write", "deactivate", "activate", "down", "up", "suspend", "delete"]),
            min_size=2,
            max_size=5,
        ),
    )
    def race(self, name: str, acts: list[str]) -> None:
        life = self.need(name)
        host, aid = self.host, life.aid
        make = {
            "write": lambda: host.write(aid),
            "deactivate": lambda: host.life.deactivate(aid),
            "activate": lambda: host.life.activate(aid),
            "down": lambda: host.set_takedown(aid, "case"),
            "up": lambda: host.set_takedown(aid, None),
            "suspend": lambda: host.set_suspended(aid, is_suspended=True),
            "delete": lambda: host.delete_now(aid),
        }

        async def all_at_once() -> list[Any]:
            return await asyncio.gather(*(make[act]() for act in acts), return_exceptions=True)

        for outcome in self.run(all_at_once()):
            if isinstance(outcome, BaseException) and not isinstance(outcome, RequestError):
                raise outcome
        self.sessions = [session for session in self.sessions if session.life is not life]
        account = self.run(host.engine.read("test", get_account_by_aid, aid))
        assert (account is None) == ("delete" in acts)
        if account is None:
            self.bury(name)
            return
        life.is_takendown = account.takedown_ref is not None
        life.is_suspended = account.suspended_at is not None
        life.is_deactivated = account.deactivated_at is not None
        life.delete_after = account.delete_after

    # What must be true

    @invariant()
    def readers_know_the_state(self) -> None:
        for event in self.host.heard[self.heard_count :]:
            frame = decode_frame(event.frame)
            did = frame.payload.get("did", frame.payload.get("repo"))
            heard = self.heard.setdefault(did, Heard())
            if frame.type == "#account":
                heard.told = True
                heard.status = None if frame.payload["active"] else frame.payload["status"]
                continue
            if frame.type in ("#commit", "#sync"):
                assert heard.told, "content before #account"
                assert heard.status is None, f"{frame.type} of an account that is {heard.status}"
                last = heard.revs.get(event.aid, "")
                is_first_sync = frame.type == "#sync" and frame.payload["rev"] == last
                assert frame.payload["rev"] > last or is_first_sync
                heard.revs[event.aid] = frame.payload["rev"]
        self.heard_count = len(self.host.heard)
        for life in self.lives.values():
            status = self.run(self.host.exports.status(life.did))
            assert (status.status.value if status.status else None) == life.status
            heard = self.heard.get(life.did, Heard())
            # A mover is not announced before its first day, also when it was here before (SYNC-41).
            if heard.told and heard.status != "deleted":
                assert heard.status == life.status
            else:
                assert not status.active
        here = {life.did for life in self.lives.values()}
        for did, heard in self.heard.items():
            if did not in here:
                assert heard.status == "deleted"

    @invariant()
    def replay_hands_out_content_of_active_accounts_only(self) -> None:
        active = {life.did for life in self.lives.values() if life.status is None}
        for frame in self.run(self.host.replay()):
            if frame.type == "#commit":
                assert frame.payload["repo"] in active
            if frame.type == "#sync":
                assert frame.payload["did"] in active
        for life in self.gone:
            last = self.run(self.host.stored(life.aid))[-1]
            assert last.payload["status"] == "deleted"

    @invariant()
    def tokens_work_as_long_as_they_should(self) -> None:
        for session in self.sessions:
            life = session.life
            for access in session.accesses:
                call = self.host.sessions.authenticate_access(access.token)
                if access.expires_us <= self.now_us:
                    assert self.refused(call) == "ExpiredToken"
                elif life.is_gone or session.is_ended:
                    assert self.refused(call) == self.why_ended(session)
                elif life.is_stopped and session.scope is not Scope.TAKENDOWN:
                    assert self.refused(call) == "AccountTakedown"
                else:
                    principal = self.run(call)
                    assert (principal.aid, principal.scope) == (life.aid, session.scope)
                    assert principal.status is AccountStatus(life.status or "active")


def _rfc3339(seconds: int, micros: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros).isoformat()
