"""Reports: what a model's forecasts were worth, as one page for people.

``Evaluation`` is what a page is made from. `m3tr-build evaluate` fills it from queries, training from the samples that it held
back (``validation``); both add ``examples`` and hand it to ``write_page``.
"""

from index_builder.report.bootstrap import VideoBootstrap
from index_builder.report.evaluation import MODEL, POOLED, Evaluation, ScoreTable, scores_by_cell
from index_builder.report.examples import EXAMPLES, Example, Similar, examples
from index_builder.report.holdout_evaluation import holdout_evaluation
from index_builder.report.page import write_page
from index_builder.report.verdict import Verdict, verdict

__all__ = [
    "EXAMPLES",
    "MODEL",
    "POOLED",
    "Evaluation",
    "Example",
    "ScoreTable",
    "Similar",
    "Verdict",
    "VideoBootstrap",
    "examples",
    "holdout_evaluation",
    "scores_by_cell",
    "verdict",
    "write_page",
]
