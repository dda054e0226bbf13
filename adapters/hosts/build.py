"""From `host.name` to a recipe."""

from collections.abc import Callable

from adapters.hosts.dacs import Dacs
from adapters.hosts.daformer import Daformer
from adapters.hosts.host import Host, HostInputs
from adapters.hosts.hrda import Hrda
from adapters.hosts.mic import Mic
from adapters.multi_resolution import weigh_detail

HOSTS: dict[str, Callable[[HostInputs], Host]] = {
    "dacs": Dacs,
    "daformer": Daformer,
    "hrda": Hrda,
    "mic": Mic,
}


def build_host(inputs: HostInputs) -> Host:
    """The recipe `inputs.host.name`. Raises AdapterError when its network or its data do not fit."""
    weigh_detail(inputs.student, inputs.host.detail_loss_weight)
    return HOSTS[inputs.host.name](inputs)
