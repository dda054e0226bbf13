"""From `host.name` to a recipe."""

from collections.abc import Callable

from adapters.hosts.dacs import Dacs
from adapters.hosts.host import Host, HostInputs

HOSTS: dict[str, Callable[[HostInputs], Host]] = {"dacs": Dacs}


def build_host(inputs: HostInputs) -> Host:
    """The recipe `inputs.host.name`. Raises AdapterError when its network or its data do not fit."""
    return HOSTS[inputs.host.name](inputs)
