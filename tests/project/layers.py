"""The layers of each package, and what breaks them: ``python -m tests.project.layers`` prints both.

A room is a folder, or a file at the root of a package. Rooms are listed from the lowest to the highest; a room may import the
rooms before it in the list and nothing else. Imports inside functions and for type checking count too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.project.source import ROOT

_ROOMS = {
    "model": """
        errors kernel_cache __init__ lru_cache ablation onnx_graph engagement growth features content quantiles
        mhp mhp.backends rates cascade forecast bank attribute_net signal_net network bundle content_reader trees head_inputs
        metrics forecaster indexing warmup
    """,
    "index_builder": """
        __init__ progress datasets simulation samples cascade neighbours trees scoring baselines bundles report evaluation training
        replay demo cli
    """,
    "service": """
        __init__ problems environment times strict_json version metrics background lifecycle fair_turns event_loop_lag settings
        http logs store.redis store.rows store embedded_store_monitor deployment forecasts ingest streaming models bank quality
        forgetting rankings readiness videos context routes app wiring server dump cli
    """,
}
LAYERS = {
    package: tuple(package if room == "__init__" else f"{package}.{room}" for room in rooms.split())
    for package, rooms in _ROOMS.items()
}
"""The rooms of each package, from the lowest to the highest; the package itself stands for its ``__init__.py``."""


@dataclass(frozen=True, slots=True, order=True)
class Import:
    """One import between two modules of a package."""

    source: str
    target: str
    line: int


@cache
def modules(package: str, root: Path = ROOT) -> dict[str, Path]:
    """Dotted name to file, of every module of a package."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((root / package).rglob("*.py"))
    }


def imports(package: str, root: Path = ROOT) -> Iterator[Import]:
    """Every import of one module of the package by another."""
    known = modules(package, root)
    for name, path in known.items():
        parent = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
            for target in _targets(node, parent):
                found = target if target in known else target.rpartition(".")[0]
                if found in known and found != name:
                    yield Import(name, found, node.lineno)  # type: ignore[attr-defined]


def _targets(node: ast.AST, parent: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    above = parent.split(".")[: len(parent.split(".")) + 1 - node.level] if node.level else []
    base = ".".join([*above, *filter(None, [node.module])])
    return [f"{base}.{alias.name}" for alias in node.names]


def room_of(module: str, rooms: Sequence[str]) -> str | None:
    """The innermost room that a module stands in; a package's own room holds its ``__init__.py`` alone."""
    around = [room for room in rooms if module == room or ("." in room and module.startswith(f"{room}."))]
    return max(around, key=len, default=None)


def offences(package: str, rooms: Sequence[str], root: Path = ROOT) -> list[str]:
    """Modules without a room, imports of a higher room, and circles between files."""
    rank = {room: i for i, room in enumerate(rooms)}
    found = [f"{name} stands in no room" for name in modules(package, root) if room_of(name, rooms) is None]
    edges: dict[str, set[str]] = {}
    for each in sorted(set(imports(package, root))):
        edges.setdefault(each.source, set()).add(each.target)
        here, there = room_of(each.source, rooms), room_of(each.target, rooms)
        if here is not None and there is not None and rank[there] > rank[here]:
            found.append(f"{each.source}:{each.line} imports {each.target}: {here} stands below {there}")
    circle = first_circle(edges)
    return [*found, *([" -> ".join(circle)] if circle else [])]


def first_circle(edges: Mapping[str, set[str]]) -> list[str]:
    """A path that ends where it began, or an empty list where there is none."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(edges.get(name, ())):
            if circle := visit(target, (*path, name)):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(edges) if (circle := visit(name, ()))), [])


def main() -> int:
    """Print the layers, highest first, and every offence."""
    bad = []
    for package, rooms in LAYERS.items():
        print(f"\n{package}, from the highest layer to the lowest")
        arrows = {(room_of(i.source, rooms), room_of(i.target, rooms)) for i in imports(package)}
        for room in reversed(rooms):
            below = sorted(there for here, there in arrows if here == room and there is not None and there != room)
            print(f"  {room:32} {', '.join(name.removeprefix(package + '.') for name in below)}")
        bad += offences(package, rooms)
    print("\n" + ("\n".join(bad) if bad else "No import runs up, no files import each other in a circle."))
    return len(bad) > 0


if __name__ == "__main__":
    sys.exit(main())
