"""The bank: past videos that are searched for similar ones. There is one interface and three implementations.

ServerBank is imported when it is first used, because importing its client takes a second.
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
