"""The frame of a report: one HTML page that contains its style and pictures and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hagmil.reports.theme import STYLE, series_colour


def html_page(title: str, body: str, style: str = "") -> str:
    """Return a complete HTML page.

    Args:
        title: title of the browser window; escaped here.
        body: HTML.
        style: CSS in addition to the theme's.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}{style}</style></head><body>{body}</body></html>\n"
    )


def legend(entries: Sequence[tuple[str, int]], *, notes: Sequence[str] = (), css: str = "legend") -> str:
    """Return an HTML list of series and their colours.

    Args:
        entries: name and number of each series; names are escaped here.
        notes: HTML after the names, one for each entry; none by default.
        css: classes of the list.
    """
    items = (
        f'<li><span class="key" style="background: {series_colour(series)}"></span>{escape(name)}{note}</li>'
        for (name, series), note in zip(entries, notes or [""] * len(entries), strict=True)
    )
    return f'<ul class="{css}">{"".join(items)}</ul>'
