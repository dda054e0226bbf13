"""The policy that `buffer.eviction` names."""

from configs.settings import BufferSettings
from storage.eviction.diverse import Diverse, reader
from storage.eviction.fifo import Fifo
from storage.eviction.policy import Eviction
from storage.eviction.reservoir import Reservoir
from storage.layout import StateLayout


def build_eviction(settings: BufferSettings, layout: StateLayout) -> Eviction:
    """The policy of a buffer; `diverse` reads what the observer of the same state directory found."""
    match settings.eviction:
        case "fifo":
            return Fifo()
        case "reservoir":
            return Reservoir()
        case "diverse":
            return Diverse(reader(layout))
