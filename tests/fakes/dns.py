"""DNS that says what a test wants: records, nothing, or silence."""

import asyncio

from pds.errors import NotResolvable, Unreachable


class FakeDns:
    """Answers text lookups from `txt`; names in `down` fail, names in `slow` never answer."""

    def __init__(self, txt: dict[str, list[str]] | None = None) -> None:
        self.txt = dict(txt or {})
        self.down: set[str] = set()
        self.slow: set[str] = set()
        self.is_down = False
        self.lookups: list[str] = []

    def set_handle(self, handle: str, *dids: str) -> None:
        """Publish DIDs for a handle."""
        self.txt[f"_atproto.{handle}"] = [f"did={did}" for did in dids]

    async def lookup_txt(self, name: str) -> list[str]:
        """Return the records. Raises: NotResolvable, Unreachable."""
        self.lookups.append(name)
        if self.is_down or name in self.down:
            raise Unreachable(f"no nameserver answered for {name}")
        if name in self.slow:
            await asyncio.sleep(3600)
        if name not in self.txt:
            raise NotResolvable(f"{name} has no TXT record")
        return list(self.txt[name])
