"""Colours and style of the reports, in a light and a dark scheme."""

from __future__ import annotations

from typing import Final

SERIES: Final = 8
"""Number of colours for series of data; the style defines them as ``--series-0``, ``--series-1`` and so on."""

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --page: #ffffff; --panel: #f5f7fa; --rule: #d9dfe7;
  --series-0: #2266c2; --series-1: #c8501e; --series-2: #1d8a63; --series-3: #8a4fc0; --series-4: #b08500;
  --series-5: #c23a78; --series-6: #1a8fa8; --series-7: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf2; --soft: #9aa7b7; --page: #12161c; --panel: #1b212a;
  --rule: #333d4a; --series-0: #6aa5f2; --series-1: #f08a5b; --series-2: #55c79c; --series-3: #bb8bea;
  --series-4: #dbb445; --series-5: #ee7fb0; --series-6: #55c3d8; --series-7: #a3adba; } }
body { margin: 0 auto; max-width: 1060px; padding: 28px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 10px; } h3 { font-size: 15px; }
p, .note { color: var(--soft); max-width: 72ch; } code { font-size: 13px; overflow-wrap: anywhere; }
.plots { display: flex; flex-wrap: wrap; gap: 18px; } figure { margin: 0; padding: 14px; background: var(--panel);
  border-radius: 8px; overflow-x: auto; max-width: 100%; box-sizing: border-box; }
figcaption { font-weight: 600; margin-bottom: 6px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: left; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); }
svg text { fill: var(--ink); font-size: 12px; } svg .small, svg .axis { fill: var(--soft); font-size: 11px; }
svg .axis { font-size: 12px; } svg .grid { stroke: var(--rule); }
.key { display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin-right: 7px; vertical-align: middle; }
ul.legend { list-style: none; padding: 0; margin: 8px 0 0; font-size: 13px; }
"""


def series_colour(index: int) -> str:
    """Return the CSS colour of a series; the colours repeat after :data:`SERIES`."""
    return f"var(--series-{index % SERIES})"
