"""Past videos for temporal-aware retrieval: one interface, three banks.

``model.bank.server.ServerBank`` is imported from its own module: its client takes a second to import.
"""

from model.bank.edge import EdgeBank
from model.bank.interface import Bank, BankQuery, BankVideo, Candidate, Curve, PastVideo
from model.bank.none import NoBank

__all__ = ["Bank", "BankQuery", "BankVideo", "Candidate", "Curve", "EdgeBank", "NoBank", "PastVideo"]
