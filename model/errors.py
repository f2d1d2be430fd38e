"""Errors of the core.

M3TRError                  base of all errors below
+-- BundleError            a bundle is missing, has a different format, or does not match its manifest
+-- BankError              the bank failed or missed its deadline
|   +-- BankBusy           an embedded bank is already open
+-- DataError              input is unusable
"""

from __future__ import annotations


class M3TRError(Exception):
    """Base of all errors that the core raises on purpose."""


class BundleError(M3TRError):
    """A bundle cannot be loaded. The message names the file and what is wrong with it."""


class BankError(M3TRError):
    """The bank failed or missed its deadline. A forecast can continue without neighbours."""


class BankBusy(BankError):
    """An embedded bank is already open in this process or in a different OS process. A copy of the bank can still be read."""


class DataError(M3TRError):
    """The input is unusable, for example rows or queries. The message names the field, the value and what is allowed."""
