"""Errors of the core.

M3TRError                  base of all errors below
+-- BundleError            a bundle is missing, has another format, or its bytes do not match the manifest
+-- BankError              the bank failed or missed its deadline
|   +-- BankBusy           an embedded bank is already open
+-- DataError              unusable rows or queries; names the field, the value and what is allowed
"""

from __future__ import annotations


class M3TRError(Exception):
    """Base of every error that the core raises on purpose."""


class BundleError(M3TRError):
    """A bundle cannot be loaded. The message names the file and what is wrong with it."""


class BankError(M3TRError):
    """The bank failed or missed its deadline. A forecast can continue without neighbours."""


class BankBusy(BankError):
    """An embedded bank is already open, in this or another process. A copy of it can be read."""


class DataError(M3TRError):
    """Unusable input. The message names the field, the value and what is allowed."""
