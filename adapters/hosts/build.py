"""From `host.name` to a recipe."""

from collections.abc import Callable

from adapters.hosts.bn_statistics import BnStatistics
from adapters.hosts.cotta import Cotta
from adapters.hosts.dacs import Dacs
from adapters.hosts.daformer import Daformer
from adapters.hosts.host import Host, HostInputs
from adapters.hosts.hrda import Hrda
from adapters.hosts.mic import Mic
from adapters.hosts.tent import Tent
from adapters.networks.multi_resolution import weigh_detail

HOSTS: dict[str, Callable[[HostInputs], Host]] = {
    "dacs": Dacs,
    "daformer": Daformer,
    "hrda": Hrda,
    "mic": Mic,
    "bn_statistics": BnStatistics,
    "tent": Tent,
    "cotta": Cotta,
}


def build_host(inputs: HostInputs) -> Host:
    """The recipe `inputs.host.name`. Raises AdapterError when its network or its data do not fit."""
    weigh_detail(inputs.student, inputs.host.detail_loss_weight)
    return HOSTS[inputs.host.name](inputs)
