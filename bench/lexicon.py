"""Microseconds to validate a record, and milliseconds to load the schemas: run it, read it.

The write path has about 6 us for this step.
"""

import time
import timeit

from pds.protocol.cid import Cid
from pds.services.lexicons import load_catalog

DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
TID = "3kznmn7xqxl22"
STRONG_REF = {"uri": f"at://{DID}/app.bsky.feed.post/{TID}", "cid": str(Cid.of_data(b"\xa0"))}
NOW = "2026-08-20T12:34:56.789Z"
BLOB = {"$type": "blob", "ref": Cid.of_raw(b"x"), "mimeType": "image/jpeg", "size": 123_456}
FACET = {
    "index": {"byteStart": 0, "byteEnd": 20},
    "features": [{"$type": "app.bsky.richtext.facet#link", "uri": "https://example.com/a"}],
}
IMAGE = {"alt": "a hill", "image": BLOB, "aspectRatio": {"width": 1000, "height": 800}}

RECORDS = {
    "post": {
        "$type": "app.bsky.feed.post",
        "text": "The hill behind the house, this morning. https://example.com/a",
        "createdAt": NOW,
        "langs": ["en"],
        "facets": [FACET],
    },
    "post, reply with image": {
        "$type": "app.bsky.feed.post",
        "text": "The hill behind the house, this morning: \U0001f304 https://example.com/a",
        "createdAt": NOW,
        "langs": ["en"],
        "facets": [FACET, FACET],
        "reply": {"root": STRONG_REF, "parent": STRONG_REF},
        "embed": {"$type": "app.bsky.embed.images", "images": [IMAGE]},
    },
    "like": {"$type": "app.bsky.feed.like", "subject": STRONG_REF, "createdAt": NOW},
    "profile": {
        "$type": "app.bsky.actor.profile",
        "displayName": "Alice",
        "description": "Keeps bees. " * 10,
        "avatar": BLOB,
        "banner": BLOB,
    },
}


def main() -> None:
    started = time.perf_counter()
    catalog = load_catalog()
    print(f"load_catalog           {(time.perf_counter() - started) * 1e3:8.2f} ms")
    for name, record in RECORDS.items():
        collection = record["$type"]
        rkey = "self" if name == "profile" else TID
        started = time.perf_counter()
        assert catalog.validate_record(collection, rkey, record) == "valid"
        first = (time.perf_counter() - started) * 1e3
        runs = timeit.repeat(
            lambda c=collection, k=rkey, r=record: catalog.validate_record(c, k, r),
            number=5_000,
            repeat=7,
        )
        print(f"{name:22} {min(runs) / 5_000 * 1e6:8.2f} us   (first {first:.2f} ms)")


if __name__ == "__main__":
    main()
