"""The name under which a request came: a foreign site that lets its own name lead here (DNS rebinding) sends its own.

A browser believes that such a site and this server are one, so the site's scripts could read every answer.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from configs.serving import ControlSettings
from daemon.net.listening import is_loopback


def known_hosts(settings: ControlSettings) -> frozenset[str] | None:
    """Return the names with a dot under which the control plane answers; None: under every name.

    Without names of the operator a plane that others reach answers under all: nobody knows how they call it.
    """
    names = frozenset(name.lower().rstrip(".") for name in settings.advanced.hosts)
    return names if names or is_loopback(settings.host) else None


def is_known(host: str, names: Collection[str]) -> bool:
    """Return whether a Host header names this server: `names`, an IP address, or a name that no foreigner can own.

    Nobody can own a name without a dot on the internet, nor one below `localhost` (RFC 6761, section 6.3).
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    bare = "." not in name and ":" not in name
    return bare or name in names or name.endswith(".localhost") or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
