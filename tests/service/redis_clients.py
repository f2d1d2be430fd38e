"""Redis clients with which tests read the store, for every kind of URL."""

from __future__ import annotations

from typing import Any

import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.sentinel import Sentinel

PLAIN = redis.Redis.from_url


class WholeCluster(RedisCluster):
    """A cluster client that sends some commands to every shard."""

    def keys(self, pattern: Any = "*", **options: Any) -> Any:
        return super().keys(pattern, target_nodes=self.PRIMARIES)

    def client_kill_filter(self, *args: Any, **options: Any) -> Any:
        return super().client_kill_filter(*args, **options, target_nodes=self.PRIMARIES)


def connected(url: str) -> Any:
    """A client of a server, of a cluster (whose FLUSHALL empties every shard), or of the master that Sentinels name."""
    scheme, _, rest = url.partition("://")
    hosts, _, path = rest.partition("/")
    places = [
        (host, int(port)) for host, _, port in (place.rpartition(":") for place in hosts.split(",") if ":" in place)
    ]
    if scheme.endswith("+cluster"):
        tls: dict[str, Any] = (
            {"ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False} if scheme.startswith("rediss") else {}
        )
        return WholeCluster(startup_nodes=[ClusterNode(host, port) for host, port in places], **tls)
    if scheme == "redis+sentinel":
        return Sentinel(places).master_for(path.partition("/")[0])
    return PLAIN(url)
