"""Views of profiles and posts as an AppView would make them, from the records of this host alone.

Pure: records in, JSON out, in the shapes of `app.bsky.actor.defs`, `app.bsky.feed.defs` and
`app.bsky.embed.*`. What only an AppView knows (counts, other people's labels) is left out, save
that a post which no AppView has seen has no likes yet. Records come from `local_records`, which has
held them against their lexicons, so their fields have the types that these say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pds.protocol.data import Json
from pds.services.local_records import LocalAuthor, LocalPost, LocalRecord

JsonMap = dict[str, Any]

_EMBED: Final = "app.bsky.embed."
_FEED: Final = "app.bsky.feed.defs#"
_NOT_SEEN: Final = {"replyCount": 0, "repostCount": 0, "likeCount": 0, "quoteCount": 0}
SELF_LABELS: Final = "com.atproto.label.defs#selfLabels"


class ImageUrls:
    """Where the blobs of accounts of this host are shown.

    `pattern` is the AppView's, as the reference has it: the first `%s` is the kind of picture, the
    second the DID, the third the CID. Without one it is our own getBlob.
    """

    def __init__(self, *, public_url: str, pattern: str | None = None) -> None:
        self._public_url = public_url
        self._pattern = pattern

    def image(self, kind: str, did: str, cid: str) -> str:
        """Return the URL of a picture of one kind, such as `avatar`."""
        if self._pattern is None:
            return self.blob(did, cid)
        url = self._pattern
        for value in (kind, did, cid):
            url = url.replace("%s", value, 1)
        return url

    def blob(self, did: str, cid: str) -> str:
        """Return the URL of a blob as it was uploaded."""
        return f"{self._public_url}/xrpc/com.atproto.sync.getBlob?did={did}&cid={cid}"


@dataclass(frozen=True, slots=True)
class ViewMaker:
    """Makes views. `quoted` holds the records that posts quote, as views, by URI.

    With `is_unseen` posts are such as no AppView knows: nobody can have liked them. With
    `has_videos` videos are shown as the file that was uploaded, which not every player takes.
    """

    urls: ImageUrls
    quoted: Mapping[str, Json]
    is_unseen: bool = False
    has_videos: bool = False

    # Profiles

    def profile_basic(self, author: LocalAuthor) -> JsonMap:
        """Return a `profileViewBasic`."""
        view: JsonMap = {"did": author.did, "handle": author.handle}
        if author.profile is not None:
            self._set_basic(view, author, author.profile)
            _set(view, "labels", self_labels(author.did, author.profile))
            _set(view, "createdAt", author.profile.value.get("createdAt"))
        return view

    def profile_detailed(self, author: LocalAuthor) -> JsonMap:
        """Return a `profileViewDetailed`, without counts."""
        view = self.profile_basic(author)
        if author.profile is not None:
            view = self.patch_detailed(view, author)
            view["indexedAt"] = author.profile.indexed_at
        return view

    def patch_basic(self, view: Mapping[str, Any], author: LocalAuthor) -> JsonMap:
        """Return somebody else's basic view of an account with what its own profile says."""
        patched = dict(view)
        if author.profile is not None:
            self._set_basic(patched, author, author.profile)
        return patched

    def patch_detailed(self, view: Mapping[str, Any], author: LocalAuthor) -> JsonMap:
        """Return somebody else's detailed view of an account with what its own profile says."""
        patched = self.patch_basic(view, author)
        if author.profile is not None:
            value = author.profile.value
            for name in ("description", "website", "pinnedPost"):
                _set(patched, name, value.get(name))
            _set(patched, "banner", self._image("banner", author, value.get("banner")))
        return patched

    def _set_basic(self, view: JsonMap, author: LocalAuthor, profile: LocalRecord) -> None:
        for name in ("displayName", "pronouns"):
            _set(view, name, profile.value.get(name))
        _set(view, "avatar", self._image("avatar", author, profile.value.get("avatar")))

    def _image(self, kind: str, author: LocalAuthor, blob: Any) -> str | None:
        cid = blob_cid(blob)
        return None if cid is None else self.urls.image(kind, author.did, cid)

    # Posts

    def post(self, post: LocalPost) -> JsonMap:
        """Return a `postView`."""
        record = post.record
        view: JsonMap = {
            "uri": record.uri,
            "cid": record.cid,
            "author": self.profile_basic(post.author),
            "record": record.value,
            "indexedAt": record.indexed_at,
        }
        _set(view, "embed", self.embed(post))
        _set(view, "labels", self_labels(post.author.did, record))
        return view | _NOT_SEEN if self.is_unseen else view

    def feed_item(self, post: LocalPost) -> JsonMap:
        """Return a `feedViewPost`."""
        return {"post": self.post(post)}

    def thread_post(self, post: LocalPost) -> JsonMap:
        """Return a `threadViewPost` without what is above and below."""
        return {"$type": f"{_FEED}threadViewPost", "post": self.post(post)}

    def quoted_post(self, post: LocalPost) -> JsonMap:
        """Return the `viewRecord` of a post that another one quotes, without what it quotes."""
        record = post.record
        view: JsonMap = {
            "$type": f"{_EMBED}record#viewRecord",
            "uri": record.uri,
            "cid": record.cid,
            "author": self.profile_basic(post.author),
            "value": record.value,
            "indexedAt": record.indexed_at,
        }
        _set(view, "labels", self_labels(post.author.did, record))
        media = self._media(post, record.value.get("embed"))
        if media is not None:
            view["embeds"] = [media]
        return view

    def embed(self, post: LocalPost) -> JsonMap | None:
        """Return the view of what a post embeds; None for nothing and for kinds not known."""
        embed = post.record.value.get("embed")
        if embed is None:
            return None
        match embed["$type"].removeprefix(_EMBED):
            case "record":
                return self._quote(embed)
            case "recordWithMedia":
                media = self._media(post, embed["media"])
                if media is None:
                    return self._quote(embed["record"])
                return {
                    "$type": f"{_EMBED}recordWithMedia#view",
                    "record": self._quote(embed["record"]),
                    "media": media,
                }
            case _:
                return self._media(post, embed)

    def _quote(self, embed: Mapping[str, Any]) -> JsonMap:
        uri = embed["record"]["uri"]
        missing = {"$type": f"{_EMBED}record#viewNotFound", "uri": uri, "notFound": True}
        return {"$type": f"{_EMBED}record#view", "record": self.quoted.get(uri, missing)}

    def _media(self, post: LocalPost, embed: Mapping[str, Any] | None) -> JsonMap | None:
        if embed is None:
            return None
        did = post.author.did
        match embed["$type"].removeprefix(_EMBED):
            case "images":
                images = [self._picture(did, item, "thumb") for item in embed["images"]]
                return {"$type": f"{_EMBED}images#view", "images": images}
            case "gallery":
                kind = f"{_EMBED}gallery#viewImage"
                items = [
                    {"$type": kind, **self._picture(did, item, "thumbnail")}
                    for item in embed["items"]
                    if item.get("$type") == f"{_EMBED}gallery#image"
                ]
                return {"$type": f"{_EMBED}gallery#view", "items": items}
            case "external":
                return self._external(did, embed["external"])
            case "video" if self.has_videos:
                return self._video(did, embed)
            case _:
                return None

    def _picture(self, did: str, item: Mapping[str, Any], small: str) -> JsonMap:
        cid = blob_cid(item["image"]) or ""
        view: JsonMap = {
            small: self.urls.image("feed_thumbnail", did, cid),
            "fullsize": self.urls.image("feed_fullsize", did, cid),
            "alt": item["alt"],
        }
        _set(view, "aspectRatio", item.get("aspectRatio"))
        return view

    def _external(self, did: str, card: Mapping[str, Any]) -> JsonMap:
        view: JsonMap = {name: card[name] for name in ("uri", "title", "description")}
        cid = blob_cid(card.get("thumb"))
        _set(view, "thumb", None if cid is None else self.urls.image("feed_thumbnail", did, cid))
        return {"$type": f"{_EMBED}external#view", "external": view}

    def _video(self, did: str, embed: Mapping[str, Any]) -> JsonMap | None:
        cid = blob_cid(embed["video"])
        if cid is None:
            return None
        view: JsonMap = {
            "$type": f"{_EMBED}video#view",
            "cid": cid,
            "playlist": self.urls.blob(did, cid),
        }
        for name in ("alt", "aspectRatio", "presentation"):
            _set(view, name, embed.get(name))
        return view


def quoted_uri(post: LocalPost) -> str | None:
    """Return the URI of the record that a post quotes."""
    embed = post.record.value.get("embed")
    if embed is None:
        return None
    match embed["$type"].removeprefix(_EMBED):
        case "record":
            uri: str = embed["record"]["uri"]
        case "recordWithMedia":
            uri = embed["record"]["record"]["uri"]
        case _:
            return None
    return uri


def fits_filter(post: LocalPost, name: str) -> bool:
    """Whether a post belongs into an author feed under the filter `name`."""
    value = post.record.value
    embed = value.get("embed")
    if embed is not None and embed["$type"] == f"{_EMBED}recordWithMedia":
        embed = embed["media"]
    kind = "" if embed is None else embed["$type"].removeprefix(_EMBED)
    reply = value.get("reply")
    match name:
        case "posts_no_replies":
            return reply is None
        case "posts_with_media":
            return kind in ("images", "gallery", "video")
        case "posts_with_video":
            return kind == "video"
        case "posts_and_author_threads":
            own = f"at://{post.author.did}/"
            return reply is None or all(
                reply[end]["uri"].startswith(own) for end in ("root", "parent")
            )
        case _:
            return True


def blob_cid(blob: Any) -> str | None:
    """Return the CID of a blob reference in JSON."""
    if blob is None:
        return None
    cid: str = blob["ref"]["$link"]
    return cid


def self_labels(did: str, record: LocalRecord) -> list[Json] | None:
    """Return the labels that an author has put on a record; they must not get lost (adult content).

    None when there are none.
    """
    given = record.value.get("labels")
    if given is None or given["$type"] != SELF_LABELS or not given["values"]:
        return None
    return [
        {
            "src": did,
            "uri": record.uri,
            "cid": record.cid,
            "val": label["val"],
            "cts": record.indexed_at,
        }
        for label in given["values"]
    ]


def _set(view: JsonMap, name: str, value: Json) -> None:
    """Set a field, or take it away when there is nothing to set."""
    if value is None:
        view.pop(name, None)
    else:
        view[name] = value
