"""report.html of a bundle: what it was trained on, and how well it did on the last window before its as-of time."""

from __future__ import annotations

import html
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.bins import HOUR_US, SECOND_US
from model.bundle import Manifest

_COLUMNS = (
    ("n", "forecasts", "{:,.0f}"), ("nmse", "nMSE", "{:.4f}"), ("mae", "MAE", "{:.4f}"), ("src", "SRC", "{:.4f}"),
    ("cover", "cover", "{:.3f}"), ("width", "width", "{:.3f}"), ("pinball", "pinball", "{:.4f}"),
)  # fmt: skip
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1d2430}
h1{font-size:1.5rem}table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .8rem;text-align:right;
border-bottom:1px solid #d8dee8}th:first-child,td:first-child{text-align:left}dt{font-weight:600}dd{margin:0 0 .5rem}
@media(prefers-color-scheme:dark){body{background:#151a22;color:#dfe5ee}th,td{border-color:#333c4b}}"""


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / SECOND_US, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _row(name: str, cell: dict[str, Any]) -> str:
    values = "".join(f"<td>{form.format(cell[key])}</td>" for key, _, form in _COLUMNS)
    return f"<tr><td>{html.escape(name)}</td>{values}</tr>"


def _label(name: str) -> str:
    if not name.startswith("age bucket "):
        return name
    bucket = int(name.removeprefix("age bucket "))
    hours = [0.0, *(0.25 * 2**k for k in range(12))]
    if bucket == len(hours) - 1:
        return f"age above {hours[-1]:g} h"
    return f"age {hours[bucket]:g} to {hours[bucket + 1]:g} h"


def write_report(manifest: Manifest, folder: Path) -> None:
    """Write report.html, one page without scripts or outside resources."""
    training, evaluation = manifest.training, manifest.evaluation
    rows = [_row(_label(name), cell) for name, cell in evaluation["cells"].items()]
    if evaluation["without_retrieval"]:
        rows.append(_row("pooled, before fusion and calibration", evaluation["without_retrieval"]))
    head = "".join(f"<th>{title}</th>" for _, title, _ in _COLUMNS)
    facts = {
        "Forecasts": f"{manifest.metric}, up to {manifest.max_horizon_us / HOUR_US:g} h ahead",
        "Trained on": f"{training['videos']:,} videos published from {_time(training['first_published_us'])}, "
        f"as known at {_time(training['as_of_us'])}",
        "Scored on": f"videos published from {_time(evaluation['window_from_us'])} on, half of them; the other half set the intervals",
        "Log-likelihood of a token and type": f"{evaluation['log_likelihood_per_token']:.3f} nats",
        "Weight of content similarity": f"{manifest.content_weight:g} (the rest is trajectory)",
    }
    listed = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>M3TR bundle report</title><style>{_STYLE}</style><h1>M3TR bundle report</h1><dl>{listed}</dl>
<table><thead><tr><th>cell</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>
<p>Errors are of the growth log2((1 + count then) / (1 + count now)). nMSE is the mean squared error over the variance (1 is
as good as the mean), MAE in log2 units, SRC Spearman's rank correlation, cover the share of outcomes inside the interval
from q0.1 to q0.9 (aim 0.80), width its mean width, pinball the mean loss of the three quantiles.</p></html>
"""
    (folder / "report.html").write_text(page, encoding="utf-8")
