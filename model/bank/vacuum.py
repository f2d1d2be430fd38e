"""``python -m model.bank.vacuum FOLDER`` erases removed videos from the files of an embedded bank that is not open.

When a video is removed, the engine only marks the video's point as removed. The video's bytes stay in the log and in
the segments. Rewriting the files takes seconds, and during this time the engine would hold the GIL. So a separate
process, the vacuum, rewrites the files. The vacuum holds the folder's lock until it has finished, even if the process
that started the vacuum ends earlier.
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

CLOSE_WAIT_S: Final = 5.0
"""Maximum time in seconds that closing a bank waits for the vacuum. After that, the vacuum continues by itself."""
_MAX_WAIT_S: Final = 600.0


def vacuum(path: Path, lock: embedded_folder.Lock, *, wait_s: float = _MAX_WAIT_S) -> None:
    """Rewrite the bank at ``path``, which must be closed and locked. Return after at most ``wait_s`` seconds.

    Raises:
        BankError: the vacuum failed.
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
        # The vacuum's process ends by itself. A return code is set so that Popen does not warn that the process still runs.
        process.returncode = 0
        return
    if status:
        raise BankError(f"bank {path}: removed videos could not be erased from its files (exit status {status})")


def main() -> None:
    """Rewrite the bank that is named on the command line."""
    path = Path(sys.argv[1])
    rewrite(embedded_folder.shard_path(path), *embedded_folder.dims(path))
    embedded_folder.mark_vacuumed(path)


if __name__ == "__main__":
    main()
