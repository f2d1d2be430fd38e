"""A library of Lua functions in Redis: its source, and a tag that distinguishes the libraries of different releases on one server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class FunctionLibrary:
    """Lua source that is loaded with FUNCTION LOAD. The name of each of its functions ends with ``tag``."""

    source: str
    tag: str

    @classmethod
    def from_template(cls, template: str) -> Self:
        """Create a library from a template. ``@TAG@`` is replaced by a digest of the template.

        Each version of the source therefore has its own function names.
        """
        tag = hashlib.sha256(template.encode()).hexdigest()[:12]
        return cls(template.replace("@TAG@", tag), tag)

    def function(self, name: str) -> str:
        """Return the full name of the Lua function ``name``."""
        return f"m3tr_{name}_{self.tag}"
