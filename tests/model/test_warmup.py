"""Kernels are compiled before serving, and compiled kernels are found even if the install is read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model import kernel_cache
from tests import patience
from tests.conftest import Mini
from tests.copies import copy_tree
from tests.project.source import ROOT

SERVING = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from numba.core.dispatcher import Dispatcher
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import sources
from model import warmup
from model.indexing import ObservedVideos, entries
from model.engagement.bins import HOUR_US
from model.forecast import Request
from model.forecaster import Forecaster
from model.engagement.history import History, Series
from model.engagement.rows import rows_of

def compiled():
    names = [name for name in sys.modules if name.startswith("model")]
    kernels = {k for name in names for k in vars(sys.modules[name]).values() if isinstance(k, Dispatcher)}
    return {(k.py_func.__name__, str(s)) for k in kernels for s in k.signatures}

warmup.compile_kernels()
ahead = compiled()
assert len(ahead) == len(warmup.KERNELS), ahead
data, forecaster = load_dataset(Path(sys.argv[1])), Forecaster.load(Path(sys.argv[2]), device="cpu")
now, series = data.last_us(), (np.array([3, 9, 12]), np.array([1, 2, 3]))
histories = [History({}), History({"view": Series("events", *series)}, {3: 5}),
             History({"view": Series("counters", *series), "like": Series("events", *series)})]
pool = forecaster.new_pool(4)
warmup.forecast_once(forecaster, pool)
for video in data.videos[-10:]:
    for history in histories:
        new = replace(video, video_id="new", published_us=now - 5 * HOUR_US)
        forecaster.forecast([Request(video, history, now, (HOUR_US,)), Request(new, history, now, (HOUR_US,))], pool=pool)
types = forecaster.manifest.types
for history in histories[1:]:
    video = data.videos[-1]
    published = np.array([video.published_us])
    past = ObservedVideos([video], published, types, *rows_of([history], [video.published_us], [video.published_us + HOUR_US], types))
    assert list(entries(forecaster, past, now, content=lambda v: forecaster.content([video])))
forecaster.close()
late = compiled() - ahead
assert not late, late
"""


def run(*arguments: str | Path, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in (kernel_cache.VARIABLE, "XDG_CACHE_HOME")}
    env |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, *map(str, arguments)]
    return patience.run(command, capture_output=True, text=True, seconds=280, cwd=root, env=env)


def test_serving_calls_only_kernels_compiled_before(mini: Mini, tmp_path: Path) -> None:
    bundle = copy_tree(mini.bundle, tmp_path / "bundle")
    process = run("-c", SERVING, mini.data, bundle)
    assert process.returncode == 0, process.stderr


def test_every_folder_with_kernels_is_known() -> None:
    files = [path for package in ("model", "index_builder") for path in (ROOT / package).rglob("*.py")]
    found = {str(path.parent.relative_to(ROOT)) for path in files if "njit(" in path.read_text("utf-8")}
    assert found == set(kernel_cache._PACKAGES)


@pytest.fixture
def install(tmp_path: Path) -> Path:
    """A copy of the packages, with a file that stands for a compiled kernel."""
    folder = tmp_path / "install"
    ignored = shutil.ignore_patterns("*.nbi", "*.nbc")
    for package in ("model", "index_builder"):
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for package in kernel_cache._PACKAGES:
        (folder / package / "__pycache__").mkdir(exist_ok=True)
    (folder / "model" / "__pycache__" / "kernel.nbi").write_bytes(b"index")
    return folder


def chosen(install: Path, readonly: list[Path], **environment: str) -> subprocess.CompletedProcess[str]:
    """Define a kernel and print the chosen folder, while some folders are mounted read-only."""
    mounts = "".join(f"mount -o bind {p} {p} && mount -o remount,bind,ro {p} && " for p in readonly)
    script = "import os, model, model.growth.curve_kernels; print(os.environ.get('NUMBA_CACHE_DIR'))"
    env = {name: value for name, value in os.environ.items() if name not in (kernel_cache.VARIABLE, "XDG_CACHE_HOME")}
    # Where nothing may be written, coverage could not be saved either.
    env = {name: value for name, value in env.items() if not name.startswith("COVERAGE_")}
    env |= {"PYTHONPATH": str(install)} | environment
    command = ["unshare", "-m", "sh", "-c", f'{mounts} exec "$@"', "sh", sys.executable, "-c", script]
    return patience.run(command, capture_output=True, text=True, seconds=120, cwd=install, env=env)


def may_mount() -> bool:
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


needs_mounts = pytest.mark.skipif(not may_mount(), reason="no right to make a mount namespace")


@needs_mounts
def test_a_writable_install_keeps_kernels_beside_the_source(install: Path) -> None:
    process = chosen(install, [])
    assert (process.stdout.strip(), process.stderr) == ("None", "")


@needs_mounts
def test_a_read_only_install_copies_its_kernels_to_the_users_cache(install: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    process = chosen(install, [install], HOME=str(home))
    folder = home / ".cache" / "m3tr" / "kernels"
    assert (process.stdout.strip(), process.stderr) == (str(folder), "")
    assert [path.read_bytes() for path in folder.glob("model_*/kernel.nbi")] == [b"index"]


@needs_mounts
def test_without_a_home_the_temporary_folder_is_used(install: Path, tmp_path: Path) -> None:
    work = tmp_path / "tmp"
    work.mkdir()
    process = chosen(install, [install], HOME="/proc/none", TMPDIR=str(work))
    assert (process.stdout.strip(), process.stderr) == (str(work / f"m3tr-kernels-{os.getuid()}"), "")
    assert (work / f"m3tr-kernels-{os.getuid()}").stat().st_mode & 0o777 == 0o700


@needs_mounts
def test_a_configured_folder_that_is_not_writable_is_named(install: Path, tmp_path: Path) -> None:
    process = chosen(install, [install], HOME=str(tmp_path), NUMBA_CACHE_DIR="/proc/none/kernels")
    assert "NUMBA_CACHE_DIR: '/proc/none/kernels' cannot be written" in process.stderr
    assert process.stdout.strip() == str(tmp_path / ".cache" / "m3tr" / "kernels")


def test_another_users_folder_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    theirs = tmp_path / "m3tr-kernels-1"
    theirs.mkdir()
    assert kernel_cache._usable(theirs)
    monkeypatch.setattr("model.kernel_cache.os.getuid", lambda: 4711)
    assert not kernel_cache._usable(theirs), "code would be loaded from it"


@needs_mounts
def test_without_a_writable_folder_kernels_are_compiled_at_every_start(install: Path, tmp_path: Path) -> None:
    readonly = [install, Path("/dev/shm"), Path("/tmp"), Path("/var/tmp"), Path("/usr")]
    process = chosen(install, [p for p in readonly if p.exists()], HOME="/proc/none", TMPDIR="/proc/none")
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "None"
    assert "compiled at every start" in process.stderr
    assert "Traceback" not in process.stderr
