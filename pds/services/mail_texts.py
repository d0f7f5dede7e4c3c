"""What we write: one template for each message, from which the text and the HTML part are made.

A template in `templates/mail/` is plain text: the subject on the first line, then paragraphs with a
blank line between them, each on one line however long. The text part is that, wrapped. The HTML
part is the same paragraphs in `layout.html`, escaped there; a paragraph that is the code or the
link is shown as such. So both parts always say the same, and no value can become markup.

The layout asks for nothing from the network and states no colours of its own, so that it is
readable in light and dark and on a telephone.
"""

import textwrap
from html.parser import HTMLParser
from typing import Final

import jinja2

from pds.services.mail import Mail

TEXT_WIDTH: Final = 76
_BLOCKS: Final = frozenset(
    {"address", "article", "blockquote", "br", "div", "h1", "h2", "h3", "h4", "h5", "h6", "hr"}
    | {"li", "ol", "p", "pre", "section", "table", "tr", "ul"}
)
_UNSEEN: Final = frozenset({"head", "script", "style", "title"})


class MailTexts:
    """Writes mails. `service_name` and `public_url` say who writes."""

    def __init__(self, *, service_name: str, public_url: str) -> None:
        self._always = {"service_name": service_name, "public_url": public_url}
        loader = jinja2.PackageLoader("pds.services", "templates/mail")
        options = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
        self._text = jinja2.Environment(loader=loader, autoescape=False, **options)  # type: ignore[arg-type]  # noqa: S701 - plain text
        self._html = jinja2.Environment(loader=loader, autoescape=True, **options)  # type: ignore[arg-type]

    def write(self, purpose: str, *, to: str, **values: str) -> Mail:
        """The mail that the template `purpose` says, with these values in it."""
        values.setdefault("code", "")
        values.setdefault("link", "")
        rendered = self._text.get_template(f"{purpose}.txt").render(**self._always, **values)
        subject, _, body = rendered.partition("\n")
        paragraphs = [part.strip("\n") for part in body.split("\n\n") if part.strip()]
        html = self._html.get_template("layout.html").render(
            **self._always,
            subject=subject,
            paragraphs=paragraphs,
            code=values["code"] or None,
            link=values["link"] or None,
        )
        return Mail(to, subject, self._as_text(paragraphs), purpose, html)

    def write_moderation(self, *, to: str, subject: str, content: str) -> Mail:
        """What a moderator wrote: HTML, as moderation tools send it, or plain text."""
        subject = " ".join(subject.split())
        if "<" not in content:
            content = "\n".join(line.rstrip() for line in content.splitlines())
            return self.write("moderation", to=to, subject=subject, content=content)
        paragraphs = html_to_paragraphs(content)
        return Mail(to, subject, self._as_text(paragraphs), "moderation", content)

    def _as_text(self, paragraphs: list[str]) -> str:
        wrapped = ["\n".join(_wrap(line) for line in part.split("\n")) for part in paragraphs]
        signature = f"-- \n{self._always['service_name']}\n{self._always['public_url']}"
        return "\n\n".join([*wrapped, signature]) + "\n"


def _wrap(line: str) -> str:
    """Break a line between words only: links and names stay whole."""
    return textwrap.fill(line, TEXT_WIDTH, break_long_words=False, break_on_hyphens=False)


class _Paragraphs(HTMLParser):
    """Collects the text of a document, a paragraph for each block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs = [""]
        self._unseen = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a paragraph at a block; note where a link leads."""
        self._unseen += tag in _UNSEEN
        if tag in _BLOCKS:
            self.paragraphs.append("")
        if tag == "a" and (target := dict(attrs).get("href")):
            self.paragraphs[-1] += f"{target} "

    def handle_endtag(self, tag: str) -> None:
        """End a paragraph with its block."""
        if tag in _UNSEEN and self._unseen:
            self._unseen -= 1
        if tag in _BLOCKS:
            self.paragraphs.append("")

    def handle_data(self, data: str) -> None:
        """Keep what is to be read."""
        if not self._unseen:
            self.paragraphs[-1] += data


def html_to_paragraphs(html: str) -> list[str]:
    """The text of an HTML fragment, for readers without HTML."""
    parser = _Paragraphs()
    parser.feed(html)
    parser.close()
    joined = (" ".join(part.split()) for part in parser.paragraphs)
    return [part for part in joined if part]
