"""Errors of the core.

M3TRError                  everything below
+-- BundleError            a bundle is missing, of another format, or its bytes do not match the manifest
+-- BankError              the bank did not answer, or answered late
|   +-- BankBusy           an embedded bank is open in another process
+-- DataError              rows or queries that cannot be used; names the field, the value and what is allowed
"""

from __future__ import annotations


class M3TRError(Exception):
    """Base of every error the core raises on purpose."""


class BundleError(M3TRError):
    """A bundle cannot be loaded: the message names the file and what is wrong with it."""


class BankError(M3TRError):
    """The bank failed or missed its deadline; a forecast can go on without neighbours."""


class BankBusy(BankError):
    """An embedded bank is open already, here or in another process; a copy of it can be read."""


class DataError(M3TRError):
    """Input that cannot be used: the message names the field, the value and what is allowed."""
