"""Reports: what a model's forecasts were worth, as one page for people.

``Evaluation`` is what a page is made from. `m3tr-build evaluate` fills it from queries, training from the samples that it held
back (``validation``); both add ``examples`` and hand it to ``write_page``.
"""

from index_builder.report.evaluation import MODEL, POOLED, Evaluation, Table, score_table
from index_builder.report.examples import EXAMPLES, Example, Similar, examples
from index_builder.report.page import write_page
from index_builder.report.spread import Spread
from index_builder.report.validation import validation
from index_builder.report.verdict import Verdict, verdict

__all__ = [
    "EXAMPLES",
    "MODEL",
    "POOLED",
    "Evaluation",
    "Example",
    "Similar",
    "Spread",
    "Table",
    "Verdict",
    "examples",
    "score_table",
    "validation",
    "verdict",
    "write_page",
]
