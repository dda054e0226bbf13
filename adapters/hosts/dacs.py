"""DACS: self-training on images mixed across domains, with or without MFM on top.

Tranheden et al., "DACS: Domain Adaptation via Cross-domain Mixed Sampling" (2021); order and constants of a step as in
the DAFormer code base (papers.md 5), the MFM branch as in papers.md 1.5.
"""

from adapters.hosts.host import HostInputs
from adapters.hosts.mfm_term import with_mfm
from adapters.hosts.mix_term import MixTerm
from adapters.hosts.self_training import SelfTraining
from adapters.hosts.source_term import SourceTerm


class Dacs(SelfTraining):
    """Source cross-entropy, cross-entropy on the ClassMix image, MFM."""

    def __init__(self, inputs: HostInputs) -> None:
        super().__init__(inputs, with_mfm(inputs, [SourceTerm(inputs), MixTerm(inputs)]))
