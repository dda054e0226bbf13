"""From `host.name` to a recipe."""

from collections.abc import Callable

from adapters.hosts.bn_statistics import BnStatistics
from adapters.hosts.cotta import Cotta
from adapters.hosts.dacs import Dacs
from adapters.hosts.host import Host, HostInputs
from adapters.hosts.tent import Tent

HOSTS: dict[str, Callable[[HostInputs], Host]] = {
    "dacs": Dacs,
    "bn_statistics": BnStatistics,
    "tent": Tent,
    "cotta": Cotta,
}


def build_host(inputs: HostInputs) -> Host:
    """The recipe `inputs.host.name`. Raises AdapterError when its network or its data do not fit."""
    return HOSTS[inputs.host.name](inputs)
