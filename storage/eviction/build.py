"""The policy that `buffer.eviction` names."""

from configs.buffer import BufferSettings
from storage.eviction.diverse import Diverse, Reader
from storage.eviction.plain import Fifo, Reservoir
from storage.eviction.policy import Eviction


def build_eviction(settings: BufferSettings, read: Reader) -> Eviction:
    """Build the policy of a buffer; `read` gives `diverse` the embeddings that the observer found."""
    match settings.eviction:
        case "fifo":
            return Fifo()
        case "reservoir":
            return Reservoir()
        case "diverse":
            return Diverse(read)
