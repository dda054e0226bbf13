"""The losses that DACS, DAFormer, HRDA and MIC are made of, in the order in which they are published."""

from adapters.hosts.host import HostInputs
from adapters.hosts.masked_image_term import MaskedImageTerm
from adapters.hosts.mfm_term import with_mfm
from adapters.hosts.mix_term import MixTerm
from adapters.hosts.self_training import Term
from adapters.hosts.source_term import SourceTerm


def recipe_terms(inputs: HostInputs) -> list[Term]:
    """Source (with feature distance), mix, masked image, MFM; a loss whose weight is 0 is not there (papers.md 5)."""
    terms: list[Term] = [SourceTerm(inputs), MixTerm(inputs)]
    if inputs.host.masked_image_weight > 0.0:
        terms.append(MaskedImageTerm(inputs))
    return with_mfm(inputs, terms)
