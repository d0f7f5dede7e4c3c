"""Moves by a sign-in whose nodes, old hosts and tokens die at random points, and arrive.

As `test_migrate_faults`; here a node also dies around each request to the authorization server, and
access tokens end at any moment, so that renewals are lost too: the owner signs in again then.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pds.services.migration import Migration, MoveInRequest
from pds.services.migration_work import Given
from tests.scenarios.moving import NEW_PASSWORD, login, signing_key, snapshot
from tests.scenarios.test_migrate_faults import Run
from tests.scenarios.test_migrate_oauth import AGE, BIRTH_DATE, Town, town_in

SEEDS = int(os.environ.get("PDS_TEST_MOVE_SEEDS", "1"))
MOST_SEEDS = 100
SIGN_INS = ("login_needed", "sign_in_needed", "password_needed")


class SignedInRun(Run):
    """One move by OAuth through many lives of its node."""

    def __init__(self, town: Town, seed: int) -> None:
        super().__init__(town.hosts, town.alice, seed)
        self.town = town
        self.sign_ins = 0
        self.most_points = 90
        """A sign-in and the account that is made with it are one act, of some fifty points."""

    async def _act(self, node: Migration, view: dict[str, Any] | None) -> None:
        if self.dice.random() < 0.1:
            self.town.oauth.expire_tokens()
        if view is not None and view["status"] == "running":
            await node.resume()
            return
        code = None if view is None else (view.get("problem") or {}).get("code")
        if view is not None and view["step"] != "open" and code not in SIGN_INS:
            await super()._act(node, view)
            return
        given = Given(uses_oauth=True, new_password=NEW_PASSWORD)
        view = await node.start_in(MoveInRequest(account=self.person.did, given=given))
        if "signIn" in view:
            self.sign_ins += 1
            back = self.town.oauth.sign_in(view["signIn"]["url"], self.person.did)
            await node.finish_sign_in(urlsplit(back).query)


async def test_a_move_by_a_sign_in_survives_deaths_at_any_point(tmp_path: Path) -> None:
    deaths: Counter[str] = Counter()
    sign_ins = 0
    for seed in range(MOST_SEEDS):
        if seed >= SEEDS and sum(deaths.values()) >= 5 * SEEDS:
            break  # How often they die depends a little on the pieces that come from the network.
        async with town_in(tmp_path / str(seed), blobs=4) as town:
            hosts, alice = town.hosts, town.alice
            before = await snapshot(alice.client, alice.did, signing_key(hosts, alice.did))
            run = SignedInRun(town, seed)
            view = await run.run()
            assert view["status"] == "done"
            deaths += run.deaths
            sign_ins += run.sign_ins
            client = await login(hosts.new, alice.did, NEW_PASSWORD)
            after = await snapshot(client, alice.did, signing_key(hosts, alice.did))
            assert (after.records, after.blobs) == (before.records, before.blobs)
            assert after.preferences == [
                item for item in before.preferences if item["$type"] not in (BIRTH_DATE, AGE)
            ]
    print(f"deaths {dict(deaths)}, sign-ins {sign_ins}")
    assert sum(deaths.values()) >= 5 * SEEDS
    assert sign_ins >= SEEDS
