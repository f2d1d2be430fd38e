"""``python -m model.bank.vacuum FOLDER``: takes what was removed out of the files of an embedded bank that is not in use.

The engine marks a removed video and keeps its bytes, in its log and in its segments. Rewriting them takes seconds, in which it
would keep the GIL: so it is done in a process of its own, which holds the folder's lock until it is done, whatever becomes of
the process that began it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from model.bank import embedded_folder
from model.bank.embedded_engine import rewrite
from model.errors import BankError

PATIENCE_S: Final = 5.0
"""Seconds that a bank's closing waits for it; it goes on by itself."""
_MOST_S: Final = 600.0


def vacuum(path: Path, lock: embedded_folder.Lock, *, wait_s: float = _MOST_S) -> None:
    """Rewrite the bank at ``path``, which is closed and whose lock is held; returns after ``wait_s`` at the latest.

    Raises:
        BankError: it failed.
    """
    command = [sys.executable, "-m", "model.bank.vacuum", str(path)]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(lock.file,),
        start_new_session=True,
    )
    try:
        status = process.wait(wait_s)
    except subprocess.TimeoutExpired:
        # It ends by itself; nobody is there to be told.
        process.returncode = 0
        return
    if status:
        raise BankError(f"bank {path}: what was removed could not be taken out of its files (status {status})")


def main() -> None:
    """Rewrite the bank that the command line names."""
    path = Path(sys.argv[1])
    rewrite(embedded_folder.shard_path(path), *embedded_folder.dims(path))
    embedded_folder.clean(path)


if __name__ == "__main__":
    main()
