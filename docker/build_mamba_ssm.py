"""Compile mamba-ssm for one GPU architecture: minutes, where all nine take tens of them.

    python docker/build_mamba_ssm.py [9.0] [--source FILE] [--wheels FOLDER]

Needs nvcc, ninja and a CUDA build of torch in this Python. Without an architecture it is that of the card here. Makes a
wheel, and installs it. ``--source`` is mamba_ssm-*.tar.gz, for a machine with no network; else pip downloads it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

_FLAG = re.compile(
    r'^( *)cc_flag\.append\("-gencode"\)\n *cc_flag\.append\("arch=compute_(\d+),code=sm_\2"\)\n', re.MULTILINE
)


def only(setup: str, architecture: str) -> str:
    """The text of a setup.py that compiles for ``architecture`` ("90") and no other."""
    known = [number for _, number in _FLAG.findall(setup)]
    if architecture not in known:
        sys.exit(f"architecture: {architecture}; this version compiles for: {', '.join(known) or 'none'}")
    return _FLAG.sub(lambda flag: flag[0] if flag[2] == architecture else f"{flag[1]}pass\n", setup)


def pip(*arguments: str, **environment: str) -> None:
    """Run pip of this Python."""
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, env={**os.environ, **environment})


def main() -> None:
    """Compile and install."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", nargs="?", help="such as 8.0, 9.0, 12.0 (default: that of the card here)")
    parser.add_argument("--source", type=Path)
    parser.add_argument("--wheels", type=Path, default=Path("wheels"))
    given = parser.parse_args()
    architecture = given.architecture
    if architecture is None:
        import torch

        architecture = "{}.{}".format(*torch.cuda.get_device_capability())
    with tempfile.TemporaryDirectory() as folder:
        if given.source is None:
            pip("download", "--no-deps", "--no-build-isolation", "--no-binary", "mamba-ssm", "-d", folder, "mamba-ssm")
        archive = given.source or next(Path(folder).glob("mamba_ssm-*.tar.gz"))
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        here = Path(folder) / archive.name.removesuffix(".tar.gz")
        setup = here / "setup.py"
        setup.write_text(only(setup.read_text(encoding="utf-8"), architecture.replace(".", "")), encoding="utf-8")
        pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(given.wheels), str(here), MAMBA_FORCE_BUILD="TRUE")
    pip("install", "--no-deps", *map(str, given.wheels.glob("mamba_ssm-*.whl")))


if __name__ == "__main__":
    main()
