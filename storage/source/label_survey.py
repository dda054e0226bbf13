"""Look at labelled source images before anything is imported: pairs, and what a sample of the labels holds."""

from configs.buffer import SourceSettings
from configs.settings import Settings
from storage.errors import RefusedImage
from storage.media.bounded import DecodeLimits
from storage.source.label_counts import LabelCounts
from storage.source.label_file import UnknownValue, read_label
from storage.source.labelled_import import label_map_of
from storage.source.pairing import refusal, source_pairs

SAMPLE = 100
"""Most labels that are read (files)."""


class LabelSurvey:
    """Pairs of a labelled set, the configured source by default, and the values in an even sample of its labels."""

    def __init__(self, settings: Settings, source: SourceSettings | None = None) -> None:
        """Read the sample. Raises SourceRefused for images without labels and labels that cannot be read or meant."""
        source = source or settings.source
        assert source is not None
        train, validation = source_pairs(source)
        self.pairs = [*train, *validation]
        step = max(1, -(-len(self.pairs) // SAMPLE))
        self.read = self.pairs[::step]
        label_map = label_map_of(settings, source)
        self.counts = LabelCounts(label_map, sample=len(self.read) < len(self.pairs))
        limits = DecodeLimits.of(settings.watch)
        problems = []
        for pair in self.read:
            try:
                self.counts.add(read_label(pair.label, label_map, limits), pair.name)
            except (RefusedImage, FileNotFoundError) as error:
                problems.append(str(error))
                if isinstance(error, UnknownValue):
                    self.counts.add(error, pair.name)
        meant = self.counts.problems() if self.counts.values else []
        if problems or meant:
            raise refusal(problems, meant)
