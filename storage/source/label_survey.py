"""Look at labelled source images before anything is imported: pairs, and what a sample of the labels holds."""

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
    """Pairs of the configured source set, and the values in a sample of its labels, evenly spaced."""

    def __init__(self, settings: Settings) -> None:
        """Read the sample. Raises SourceRefused for images without labels and labels that cannot be read or meant."""
        train, validation = source_pairs(settings)
        self.pairs = [*train, *validation]
        step = max(1, -(-len(self.pairs) // SAMPLE))
        self.read = self.pairs[::step]
        label_map = label_map_of(settings)
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
