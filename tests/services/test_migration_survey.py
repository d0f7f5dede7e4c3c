"""The dry run counts what a CAR holds, however it is cut into chunks."""

import pytest

from pds.protocol import cbor
from pds.protocol.car import CarError, encode_car
from pds.protocol.cid import Cid
from pds.services.migration_survey import MAX_TYPES, OTHER, Surveyor

BLOB = Cid.of_raw(b"a picture")


def block(value: object) -> tuple[Cid, bytes]:
    content = cbor.encode(value)
    return Cid.of_data(content), content


def survey(content: bytes, *, step: int = 7) -> Surveyor:
    surveyor = Surveyor(max_bytes=1 << 20)
    for at in range(0, len(content), step):
        surveyor.feed(content[at : at + step])
    return surveyor


def picture(text: str) -> dict[str, object]:
    blob = {"$type": "blob", "ref": BLOB, "mimeType": "image/png", "size": 9}
    return {"$type": "app.bsky.feed.post", "text": text, "embed": {"images": [{"image": blob}]}}


def test_records_are_counted_by_type_and_blobs_once() -> None:
    blocks = [
        block(picture("one")),
        block(picture("two")),
        block({"$type": "app.bsky.feed.like"}),
        block({"e": [], "l": None}),
    ]
    surveyor = survey(encode_car([blocks[0][0]], blocks))
    assert not surveyor.found.is_complete
    surveyor.finish()
    found = surveyor.found.to_json()
    assert found["recordsByType"] == {"app.bsky.feed.post": 2, "app.bsky.feed.like": 1}
    assert (found["blobs"], found["blobBytes"], found["largestBlob"]) == (1, 9, 9)
    assert found["isComplete"] is True


def test_a_car_that_ends_early_or_grows_without_end_is_not_complete() -> None:
    content = encode_car([BLOB], [block(picture("one"))])
    with pytest.raises(CarError):
        survey(content[:-1]).finish()
    with pytest.raises(CarError):
        Surveyor(max_bytes=10).feed(content)


def test_types_without_end_are_counted_together() -> None:
    blocks = [block({"$type": f"example.kind.t{number}"}) for number in range(MAX_TYPES + 5)]
    found = survey(encode_car([BLOB], blocks), step=1000).found
    assert len(found.records) == MAX_TYPES + 1
    assert found.records[OTHER] == 5


def test_types_that_are_none_are_not_shown() -> None:
    """What is counted comes to a terminal, and a stranger has written it."""
    blocks = [
        block({"$type": kind}) for kind in ("\x1b]0;a title\x07", "a\nb", "\u202eabc", "a.b.c")
    ]
    found = survey(encode_car([blocks[0][0]], blocks)).found.to_json()
    assert found["recordsByType"] == {OTHER: 3, "a.b.c": 1}
