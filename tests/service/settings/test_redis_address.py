"""REDIS_URL: which forms are valid, and that an error is one line without the password."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings
from service.settings.redis_address import AddressError, parse_address
from service.store.redis.server import Server
from tests.service.servers import free_port


def test_one_server() -> None:
    one = parse_address("redis://:p%23a%2Fb%40c@host:7000/3")
    assert (one.kind, one.hosts, one.db, one.username, one.password) == (
        "server",
        (("host", 7000),),
        3,
        None,
        "p#a/b@c",
    )
    assert parse_address("redis://").hosts == (("localhost", 6379),)
    assert parse_address("redis://user:a@b@host").password == "a@b"
    assert parse_address("redis://[::1]:7000/").hosts == (("::1", 7000),)
    tls = parse_address("rediss://user:p@host/1?ssl_cert_reqs=CERT_NONE&socket_timeout=3")
    assert tls.tls and tls.tls_options == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    assert tls.ignored == ("socket_timeout",) and "'p'" not in repr(tls)
    unix = parse_address("unix://:p@/run/a%20b.sock?db=2")
    assert (unix.path, unix.db, unix.password) == ("/run/a b.sock", 2, "p")


def test_sentinels_and_nodes() -> None:
    trio = parse_address("redis+sentinel://u:p@a,b:5000,[fe80::1]:26380/mymaster/2?sentinel_password=q")
    assert trio.hosts == (("a", 26379), ("b", 5000), ("fe80::1", 26380))
    assert (trio.kind, trio.master, trio.db, trio.password, trio.sentinel_password) == (
        "sentinel",
        "mymaster",
        2,
        "p",
        "q",
    )
    nodes = parse_address("rediss+cluster://a:7000,b")
    assert (nodes.kind, nodes.tls, nodes.hosts) == ("cluster", True, (("a", 7000), ("b", 6379)))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "Sesam3",
        "http://:Sesam3@h",
        "redis:/:Sesam3@h",
        '"redis://:Sesam3@localhost:6379/0"',
        "'redis://localhost'",
        " redis://localhost",
        "redis://localhost\n",
        "redis://:Sesam3 x@h",
        "redis://:Sesam3#open@localhost:6379/0",
        "redis://:Sesam3/open@localhost:6379/0",
        "redis://:Sesam3?open@localhost:6379/0",
        "redis://:123/456@localhost",
        "redis://:123?456@localhost:6379",
        "redis://localhost:Sesam3/0",
        "redis://localhost:0/0",
        "redis://localhost:66000",
        "redis://h/Sesam3",
        "redis://h/0/1",
        "redis://h?Sesam3=1",
        "redis://h?Sesam3",
        "redis://a:1,b:2/0",
        "redis://h?ssl_cert_reqs=none",
        "rediss://h?ssl_cert_reqs=Sesam3",
        "rediss://h?ssl_min_version=Sesam3",
        "unix://",
        "unix://Sesam3",
        "redis+sentinel://a:26379",
        "redis+sentinel://a:26379/",
        "redis+sentinel:///mymaster",
        "redis+sentinel://a/mymaster/Sesam3",
        "redis+cluster://a:1/1",
        "redis+cluster://",
        "redis+cluster://a,:7000",
        "redis-cluster://a",
    ],
)
def test_errors_do_not_show_the_password(url: str) -> None:
    with pytest.raises(AddressError, match=r"^REDIS_URL: ") as raised:
        Server(url, deadline_s=1)
    assert "Sesam" not in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(ValidationError) as refused:
        Settings(bundle=Path("b"), redis_url=url)
    assert "Sesam" not in str(refused.value.errors(include_url=False, include_input=False)[0]["msg"])


def test_a_missing_server_is_waited_for_but_a_missing_sentinel_ends_the_start() -> None:
    async def check(url: str) -> None:
        server = Server(url, deadline_s=1)
        try:
            await server.check_sentinels()
        finally:
            await server.close()

    port = free_port()
    asyncio.run(check(f"redis://127.0.0.1:{port}"))
    asyncio.run(check(f"redis+cluster://127.0.0.1:{port}"))
    with pytest.raises(AddressError, match="REDIS_URL: none of its Sentinels answers"):
        asyncio.run(check(f"redis+sentinel://127.0.0.1:{port}/mymaster"))
