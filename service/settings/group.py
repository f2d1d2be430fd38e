"""What all groups of settings have in common."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict


class SettingsGroup(BaseModel):
    """Base of the groups: values are checked once and never change.

    A validator's name must be unique over all groups: ``Settings`` inherits from all of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)


def split_list(value: object) -> object:
    """Items of a list that is written as text, separated by commas or white space; empty values give an empty list."""
    return tuple(re.split(r"[,\s]+", value.strip())) if isinstance(value, str) and value.strip() else value or ()
