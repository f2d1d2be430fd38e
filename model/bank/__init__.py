"""The bank stores past videos and searches them for similar videos. There is one interface with three implementations.

``ServerBank`` is imported at its first use, because importing its Qdrant client takes a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.bank.embedded import EmbeddedBank
from model.bank.empty import EmptyBank
from model.bank.interface import NEVER_US, Bank, BankQuery, BankVideo, Candidate, Curve, PastVideo

if TYPE_CHECKING:
    from model.bank.server import ServerBank

__all__ = [
    "NEVER_US",
    "Bank",
    "BankQuery",
    "BankVideo",
    "Candidate",
    "Curve",
    "EmbeddedBank",
    "EmptyBank",
    "PastVideo",
    "ServerBank",
]


def __getattr__(name: str) -> type[ServerBank]:
    if name != "ServerBank":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from model.bank.server import ServerBank

    return ServerBank
