"""Writes reports: one page that shows people how good a model's forecasts were.

A page is made from an ``Evaluation``. `m3tr-build evaluate` fills the evaluation from queries. Training fills the
evaluation from the holdout videos (``index_builder.evaluation.holdout_evaluation``). Both commands add ``examples`` and
pass the evaluation to ``write_page``.
"""

from index_builder.report.bootstrap import VideoBootstrap
from index_builder.report.evaluation import MODEL, Evaluation
from index_builder.report.examples import EXAMPLES, Example, Similar, examples
from index_builder.report.page import write_page
from index_builder.report.verdict import Verdict, verdict

__all__ = [
    "EXAMPLES",
    "MODEL",
    "Evaluation",
    "Example",
    "Similar",
    "Verdict",
    "VideoBootstrap",
    "examples",
    "verdict",
    "write_page",
]
