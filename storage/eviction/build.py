"""The policy that `buffer.eviction` names."""

from configs.buffer import BufferSettings
from configs.plugins import EVICTION, load_plugin
from storage.eviction.diverse import Diverse, Reader
from storage.eviction.foreign import Foreign
from storage.eviction.plain import Fifo, Reservoir
from storage.eviction.policy import Eviction


def build_eviction(settings: BufferSettings, read: Reader) -> Eviction:
    """Build the policy of a buffer; `read` gives `diverse`, or a plug-in, the embeddings that the observer found.

    Raises ConfigError for a plug-in that cannot be imported.
    """
    match settings.eviction:
        case "fifo":
            return Fifo()
        case "reservoir":
            return Reservoir()
        case "diverse":
            return Diverse(read)
        case name:
            return Foreign(name, load_plugin(name, EVICTION, "buffer.eviction")(read))
