"""A library of Redis functions: its source, and the tag that keeps two releases on one server apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class FunctionLibrary:
    """Lua source that is loaded with FUNCTION LOAD; ``tag`` ends the name of each of its functions."""

    source: str
    tag: str

    @classmethod
    def from_template(cls, template: str) -> Self:
        """Replace ``@TAG@`` by a hash of the template, so that each version of the source has functions of its own."""
        tag = hashlib.sha256(template.encode()).hexdigest()[:12]
        return cls(template.replace("@TAG@", tag), tag)

    def function(self, name: str) -> str:
        """The full name of the function ``name``."""
        return f"m3tr_{name}_{self.tag}"
