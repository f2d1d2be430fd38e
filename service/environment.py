"""Finds environment variables that are not settings: mistyped names, and variables that Kubernetes adds.

For each Service of a namespace, the kubelet sets variables in every pod. The names of these variables begin with the Service's name. For
example, a Service called ``m3tr`` causes ``M3TR_PORT=tcp://10.96.0.12:8000``, ``M3TR_SERVICE_HOST``, ``M3TR_SERVICE_PORT``,
``M3TR_PORT_8000_TCP_ADDR`` and more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from service.problems import did_you_mean

PREFIX: Final = "M3TR_"
_LINK: Final = re.compile(
    r"M3TR_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://\S+")


def service_links(environment: Mapping[str, str]) -> list[str]:
    """Return the names of variables that Kubernetes set for a Service whose name begins with m3tr."""
    return sorted(
        name
        for name, value in environment.items()
        if _LINK.fullmatch(name.upper())
        or (name.upper().startswith(PREFIX) and name.upper().endswith("PORT") and _ADDRESS.fullmatch(value))
    )


def unknown(environment: Mapping[str, str], settings: Iterable[str], others: Iterable[str] = ()) -> list[str]:
    """Return one line of text for each variable that has the prefix M3TR_ but is not a setting.

    ``others``: names of variables that are known although they are not settings.
    """
    names = {PREFIX + name.upper() for name in settings}
    ignored = {*names, *service_links(environment), *others}
    lines = []
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in ignored and name not in ignored:
            known = {known.lower(): known for known in names}
            near = did_you_mean(name.lower(), known)
            for lower, upper in known.items():
                near = near.replace(lower, upper)
            lines.append(f"{name} is not a setting and has no effect{near}")
    return lines
