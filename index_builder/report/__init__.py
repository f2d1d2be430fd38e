"""Reports: how good a model's forecasts were, as one page for people.

``Evaluation`` is what a page is made from. `m3tr-build evaluate` fills it from queries, training from its holdout
(``index_builder.evaluation.holdout_evaluation``). Both add ``examples`` and pass it to ``write_page``.
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
