"""The store over TLS works the same, and an unknown certificate is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.service.running import T0, live, wait_until
from tests.service.servers import BINARY, RedisProcess, cluster_info, free_port, server

pytestmark = pytest.mark.slow


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None or b"tls" not in subprocess.run(
        ["ldd", BINARY], capture_output=True
    ).stdout.replace(b"ssl", b"tls"):
        if os.environ.get("CI"):
            pytest.fail("openssl, and a redis-server with TLS, are needed")
        pytest.skip("no openssl, or a redis-server without TLS")
    path = tmp_path / "tls.crt"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout",
            tmp_path / "tls.key",
            "-out",
            path,
        ],
        check=True,
        capture_output=True,
    )
    return path


def options(certificate: Path, port: int) -> list[str]:
    return [
        "--tls-port",
        str(port),
        "--tls-cert-file",
        str(certificate),
        "--tls-key-file",
        str(certificate.with_suffix(".key")),
        "--tls-ca-cert-file",
        str(certificate),
        "--tls-auth-clients",
        "no",
    ]


def test_the_store_over_tls(certificate: Path, tmp_path: Path) -> None:
    port = free_port()
    with server(tmp_path / "redis", *options(certificate, port), "--timeout", "1") as plain:
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}"
        with live(url, ingest_stream=True) as service, plain.client() as client:
            service.register("v")
            for _ in range(2):
                service.post("/events", [{"video_id": "v", "time": T0 + 1, "type": "view"}])
                # The server closes idle connections.
                wait_until(lambda: client.info("clients")["connected_clients"] <= 4)
            assert service.http.get("/videos/v").json()["counts"] == {"view": 2}
            assert "m3tr_store_failures_total{" not in service.http.get("/metrics").text
        with live(f"rediss://localhost:{port}/0") as service:
            assert service.http.get("/health/ready").json()["store"] == "down"
        with live(f"rediss://localhost:{port}/0?ssl_cert_reqs=none") as service:
            assert service.http.get("/health/ready").status_code == 200


def test_a_cluster_over_tls(certificate: Path, tmp_path: Path) -> None:
    port = free_port()
    with (
        server(tmp_path / "n", *options(certificate, port), "--cluster-enabled", "yes", "--tls-cluster", "yes") as node,
        node.client() as client,
    ):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: cluster_info(client)["cluster_state"] == "ok")
        for form in ("rediss+cluster", "rediss"):
            with live(f"{form}://127.0.0.1:{port}/0?ssl_ca_certs={certificate}") as service:
                assert service.http.get("/health/ready").status_code == 200
                service.register(f"v-{form}")


def test_a_tls_address_of_a_plain_server(tmp_path: Path) -> None:
    plain: RedisProcess
    with server(tmp_path) as plain, live(f"rediss://127.0.0.1:{plain.port}") as service:
        assert service.http.get("/health/ready").json()["store"] == "down"
