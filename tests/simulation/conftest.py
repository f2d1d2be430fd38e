from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.store.redis.embedded_server import EmbeddedServer
from tests.simulation.faults import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real store."""
    embedded = EmbeddedServer(tmp_path_factory.mktemp("simulation"), appendfsync="everysec")
    embedded.start()
    connected = Server(embedded.url)
    yield connected
    connected.close()
    embedded.stop()
