"""Commands read the environment: nothing of the tests' own settings may reach them."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every PDS_* name, those that steer the tests too."""
    for name in [name for name in os.environ if name.startswith("PDS_")]:
        monkeypatch.delenv(name)
