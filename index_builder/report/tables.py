"""The tables of a report: arms by cell, and neighbours."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from index_builder.report.evaluation import MODEL, POOLED, ScoreTable, cell_name
from index_builder.report.examples import Example, Similar
from index_builder.report.svg import factor, hours, number, short

_TO: Final = "\N{EN DASH}"
_COLUMNS: Final = (
    ("nmse", "nMSE", 4, min),
    ("mae", "MAE", 4, min),
    ("src", "SRC", 4, max),
    ("pinball", "pinball", 4, min),
    ("cover", "cover", 3, None),
    ("width", "width", 3, None),
)


def scores(table: ScoreTable, cell: str) -> str:
    """All scores of all arms in one cell, each with its interval; the best in bold."""
    best = {}
    for key, _, _, choose in _COLUMNS:
        values = [c[cell][key] for c in table.values() if np.isfinite(c[cell][key])]
        best[key] = choose(values) if choose and values else None
    body = []
    for arm, cells in table.items():
        c = cells[cell]
        shown = [_value(c, key, places, c[key] == best[key]) for key, _, places, _ in _COLUMNS]
        body.append(_arm(arm, shown))
    return _table(["model", *(title for _, title, _, _ in _COLUMNS)], body)


def matrix(table: ScoreTable, key: str, places: int) -> str:
    """One score of all arms by cell."""
    cells = sorted(next(iter(table.values())), key=lambda cell: cell != POOLED)
    best = {
        cell: min((c[cell][key] for c in table.values() if np.isfinite(c[cell][key])), default=None) for cell in cells
    }
    body = [
        _arm(arm, [_value(scored[cell], key, places, scored[cell][key] == best[cell]) for cell in cells])
        for arm, scored in table.items()
    ]
    first = next(iter(table.values()))
    heads = [f"{html.escape(cell_name(cell))}<br>n={first[cell]['n']:,}" for cell in cells]
    return _table(["model", *heads], body, escaped=True)


def neighbours(example: Example) -> str:
    """The neighbours of a video, below the video itself."""
    longest = int(example.horizons_us[-1])
    own = [*_video(example.video.title, example.video.category), "", "", factor(example.growth)]
    body = [f'<tr class="model">{"".join(f"<td>{v}</td>" for v in own)}</tr>']
    body += [f"<tr>{''.join(f'<td>{v}</td>' for v in _neighbour(n, longest))}</tr>" for n in example.neighbours]
    return _table(["title", "category", "content", "trajectory", "growth"], body)


def title(text: str | None, video_id: str) -> str:
    """A video's title in its own direction, whatever is in it."""
    return f'<div class="title" dir="auto">{html.escape(short(text or video_id, 160))}</div>'


def _neighbour(n: Similar, longest_us: int) -> list[str]:
    name = (n.video.title or n.video.video_id, n.video.category) if n.video else ("(not in this data set)", None)
    shorter = f"<small>in {hours(n.horizon_us)}</small>" if n.horizon_us < longest_us else ""
    return [
        *_video(*name),
        number(n.content, 2),
        number(n.trajectory, 2),
        "not known yet" if n.growth is None else factor(n.growth) + shorter,
    ]


def _video(name: str | None, category: str | None) -> tuple[str, str]:
    return title(name, "(no title)"), f"<bdi>{html.escape(short(category or '-', 40))}</bdi>"


def _value(cell: dict[str, Any], key: str, places: int, best: bool) -> str:
    if not np.isfinite(cell[key]):
        return "-"
    low, high = cell["intervals"][key]
    value = number(cell[key], places)
    text = f'<span class="best">{value}</span>' if best else value
    interval = f"{number(low, 3)}{_TO}{number(high, 3)}" if np.isfinite([low, high]).all() else ""
    return f"{text}<small>{interval}</small>"


def _arm(arm: str, values: Sequence[str]) -> str:
    cls = ' class="model"' if arm == MODEL else ""
    return f"<tr{cls}><td>{html.escape(arm)}</td>{''.join(f'<td>{v}</td>' for v in values)}</tr>"


def _table(heads: Sequence[str], body: Iterable[str], *, escaped: bool = False) -> str:
    cells = "".join(f"<th>{head if escaped else html.escape(head)}</th>" for head in heads)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
