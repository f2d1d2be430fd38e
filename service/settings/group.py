"""The base class of all groups of settings."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict


class SettingsGroup(BaseModel):
    """Base class of the groups of settings. Values are checked once and never change.

    A validator's name must be unique among all groups, because ``Settings`` inherits from all of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)


def split_list(value: object) -> object:
    """Split a text at commas and white space into a tuple. If ``value`` is not a text, return it unchanged.

    If ``value`` is empty, return an empty tuple.
    """
    return tuple(re.split(r"[,\s]+", value.strip())) if isinstance(value, str) and value.strip() else value or ()
