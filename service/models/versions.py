"""Finds the bundles in a folder, and finds the version that a name refers to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model.bundle import FILES, MANIFEST, Manifest, load_bundle
from model.engagement.bins import SECOND_US
from model.errors import M3TRError
from service.problems import Conflict, NotFound
from service.times import iso

PREFIX: Final = 8
"""Minimum length of a hash prefix that identifies a version, in characters."""

Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Version:
    """One bundle.

    ``hash``: the version's hash. For a damaged bundle, the hash that the manifest states, or None if the manifest cannot be read.
    ``folder``: the bundle's folder, or None if the bundle is only in memory.
    ``manifest``: the bundle's manifest, or None if the bundle is damaged.
    ``broken``: the reason why the bundle is damaged, or None if it is intact.
    """

    hash: str | None
    folder: Path | None
    manifest: Manifest | None
    broken: str | None = None

    def row(self, state: str, reason: str | None) -> dict[str, Any]:
        """Return the version's row in the response to GET /models."""
        row: dict[str, Any] = {
            "version": self.hash,
            "folder": None if self.folder is None else self.folder.name,
            "state": state,
            "reason": self.without_paths(reason),
        }
        if self.manifest is not None:
            as_of_us = self.manifest.training.get("as_of_us")
            row |= {
                "metric": self.manifest.metric,
                "metrics": list(self.manifest.metrics),
                "types": list(self.manifest.types),
                "max_horizon_s": self.manifest.max_horizon_us // SECOND_US,
                "as_of": None if as_of_us is None else iso(as_of_us),
                "evaluation": self.manifest.evaluation.get("cells", {}).get("pooled"),
            }
        return row

    def without_paths(self, text: str | None) -> str | None:
        """Remove this machine's file paths from a reason, so that clients do not see the paths."""
        if text is None or self.folder is None:
            return text
        for parent in {str(self.folder.parent), str(self.folder.parent.resolve())}:
            text = text.replace(f"{parent}/", "")
        return text


def misfit(manifest: Manifest, served: Manifest) -> str | None:
    """Return the reason why a bundle cannot be activated in this service, or None if the bundle can be activated.

    The bundle that a service starts with (``served``) decides what the service accepts: engagement types, metrics, and longest horizon.
    A different bundle fits if it forecasts the served bundle's metrics, with the same first one, knows all its engagement types, and has
    at least its longest horizon. To use further metrics, types or longer horizons of a bundle, start a service with that bundle.
    """
    if manifest.metric != served.metric:
        return f"it forecasts {manifest.metric} but this service forecasts {served.metric}: start a service with it"
    if others := [metric for metric in served.metrics if metric not in manifest.metrics]:
        return f"it does not forecast {', '.join(others)}, which this service forecasts: start a service with it"
    if missing := sorted(set(served.types) - set(manifest.types)):
        return f"it does not read {', '.join(missing)}, which this service accepts: start a service with it"
    reach_s, needed_s = manifest.max_horizon_us // SECOND_US, served.max_horizon_us // SECOND_US
    if reach_s < needed_s:
        return f"it forecasts at most {reach_s} s ahead but this service needs {needed_s} s: start a service with it"
    return None


class Versions:
    """Finds the served bundle, and the bundles in sub-folders of ``bundles``. Hidden sub-folders are skipped.

    Every file of a bundle is verified. A bundle is verified again only if one of its files has changed.
    """

    def __init__(self, served: Path, bundles: Path | None) -> None:
        self._served, self._bundles = served, bundles
        self._known: dict[Path, tuple[Stamp, Version]] = {}

    def find(self) -> list[Version]:
        """Return the bundles that exist now, the served one first and the others by folder name.

        The search blocks, so call it in a thread.

        Raises:
            OSError: the folder cannot be read.
        """
        found: dict[Path, None] = {}
        if (self._served / MANIFEST).is_file():
            found[self._served.resolve()] = None
        for folder in sorted(self._bundles.iterdir()) if self._bundles is not None else ():
            if not folder.name.startswith(".") and (folder / MANIFEST).is_file():
                found[folder.resolve()] = None
        known: dict[Path, tuple[Stamp, Version]] = {}
        for folder in found:
            stamp = _stamp(folder)
            before = self._known.get(folder)
            known[folder] = before if before is not None and before[0] == stamp else (stamp, _read(folder))
        self._known = known
        return [version for _, version in known.values()]


def choose(name: str, versions: Iterable[Version]) -> Version:
    """Return the version with this folder name, hash, or prefix of a hash.

    Raises:
        NotFound: no version has this name.
        Conflict: several versions have this prefix.
    """
    versions = list(versions)
    meant = [version for version in versions if version.folder is not None and version.folder.name == name]
    if not meant and len(name) >= PREFIX:
        meant = [version for version in versions if version.hash is not None and version.hash.startswith(name)]
    if not meant:
        allowed = (
            f"the hash of a version in GET /models, its first {PREFIX} or more characters, or the version's folder"
        )
        raise NotFound("there is no such model", field="version", value=name, allowed=allowed)
    if len({version.hash for version in meant}) > 1:
        raise Conflict("several models have this prefix", field="version", value=name, allowed=_hashes(meant))
    # Several folders may hold copies of one version. Prefer a copy that is not damaged.
    return min(meant, key=lambda version: version.broken is not None)


def _hashes(versions: Sequence[Version]) -> str:
    return ", ".join(sorted(str(version.hash) for version in versions))


def _stamp(folder: Path) -> Stamp:
    stamps = []
    for name in (MANIFEST, *FILES):
        try:
            status = (folder / name).stat()
            stamps.append((status.st_size, status.st_mtime_ns, status.st_ino))
        except OSError:
            stamps.append((-1, 0, 0))
    return tuple(stamps)


def _read(folder: Path) -> Version:
    try:
        manifest = load_bundle(folder).manifest
    except (M3TRError, OSError, ValueError, KeyError, TypeError) as error:
        stated = None
        with suppress(OSError, ValueError, KeyError, TypeError):
            stated = str(json.loads((folder / MANIFEST).read_bytes())["version"])
        return Version(
            stated, folder, None, f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        )
    return Version(manifest.version, folder, manifest)
