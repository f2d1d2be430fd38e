"""Writes report.html: one page without scripts or external resources, for readers who do not know the code.

The page is the Jinja2 template ``templates/page.html``. ``sections`` computes the page's content.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import jinja2

from index_builder.report.bootstrap import VideoBootstrap
from index_builder.report.evaluation import MODEL, Evaluation
from index_builder.report.sections import Sections
from index_builder.report.summary import facts, metric_in_words, summary
from index_builder.report.svg import count, factor, hours, number, short

_TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("index_builder.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"count": count, "factor": factor, "hours": hours, "number": number, "short": short}


def write_page(path: Path, evaluation: Evaluation) -> None:
    """Write the report of an evaluation."""
    path.write_text(render(evaluation), encoding="utf-8")


def render(evaluation: Evaluation) -> str:
    """Return the report as HTML."""
    lead, sections = "Too few videos were held out, so nothing could be scored.", None
    if len(evaluation.queries.video):
        bootstrap = VideoBootstrap(evaluation.queries.video)
        lead, sections = summary(evaluation, bootstrap), Sections(evaluation, bootstrap)
    return _TEMPLATES.get_template("page.html").render(
        title=f"{MODEL}: forecasts of {metric_in_words(evaluation.manifest.metric)}",
        lead=lead,
        facts=facts(evaluation),
        seen_in_training=evaluation.seen_in_training,
        sections=sections,
        model=MODEL,
    )
