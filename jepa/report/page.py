"""The shell of the page: head, navigation, sections in order, footer. Nothing in it can reach the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from jepa.report.markup import Html, html, join
from jepa.report.style import CSS, SCRIPT


@dataclass
class Section:
    """One part of the page: anchor, heading, a lead sentence and a body."""

    anchor: str
    title: str
    lead: str | Html
    body: Html
    short: str = ""  # name in the navigation; the title where empty

    def render(self) -> Html:
        return html(
            '<section id="{a}" aria-labelledby="{a}-h"><h2 id="{a}-h"><a href="#{a}">{t}</a></h2>'
            '<p class="lead">{lead}</p>{body}</section>',
            a=self.anchor, t=self.title, lead=self.lead, body=self.body,
        )  # fmt: skip


def missing(sentence: str, command: str = "") -> Html:
    """What to say where something is not there yet, and the command that makes it."""
    how = html(" Run <code>{c}</code> to get it.", c=command) if command else Html("")
    return html('<p class="missing">{s}{h}</p>', s=sentence, h=how)


def render(title: str, header: Html, sections: Sequence[Section], footer: Html) -> str:
    """The whole document.

    The content security policy allows inline images, the style sheet and this one script (by its hash) and nothing
    else, so that even markup that slipped through escaping could neither run nor fetch anything.
    """
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    links = join(html('<li><a href="#{a}">{t}</a></li>', a=s.anchor, t=s.short or s.title) for s in sections)
    return html(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><title>{title}</title>\n<style>{css}</style></head>\n'
        '<body><main>\n<header id="top">{header}<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        "{sections}\n<footer>{footer}</footer>\n</main>\n<script>{script}</script></body></html>\n",
        policy=policy, title=title, css=Html(CSS), header=header, links=links,
        sections=join((s.render() for s in sections), "\n"), footer=footer, script=Html(SCRIPT),
    )  # fmt: skip
