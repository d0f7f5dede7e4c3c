"""When relays were last asked to read this host, by any of its nodes.

Owns the row `crawl_requests` of the table `fact`: unix microseconds by the URL of the relay, in
JSON. Losing it costs a request too many.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from pds.store.engine import Txn

_FACT: Final = "crawl_requests"


def get_crawl_requests(txn: Txn) -> dict[str, int]:
    """Return when each relay was asked."""
    row = txn.read_one("SELECT value FROM fact WHERE name = ?", (_FACT,))
    try:
        found = {} if row is None else json.loads(bytes(row[0]))
    except ValueError:
        return {}
    return {str(url): int(at) for url, at in found.items() if isinstance(at, int)}


def claim_crawl_requests(
    txn: Txn, relays: Sequence[str], *, now_us: int, min_gap_us: int, keep: Sequence[str]
) -> dict[str, int]:
    """Note that `relays` are asked now, but for those asked less than `min_gap_us` ago.

    Returns these, with when they were asked. Only the relays in `keep` are remembered.
    """
    known = get_crawl_requests(txn)
    recent = {
        url: known[url] for url in relays if url in known and 0 <= now_us - known[url] < min_gap_us
    }
    asked = known | {url: now_us for url in relays if url not in recent}
    _put(txn, {url: at for url, at in asked.items() if url in keep})
    return recent


def release_crawl_request(txn: Txn, relay: str) -> None:
    """Forget that a relay was asked: it did not answer."""
    known = get_crawl_requests(txn)
    if known.pop(relay, None) is not None:
        _put(txn, known)


def _put(txn: Txn, requests: Mapping[str, int]) -> None:
    txn.write(
        "INSERT INTO fact (name, value) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (_FACT, json.dumps(requests, sort_keys=True).encode()),
    )
