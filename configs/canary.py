"""Settings of canary labels: a few labelled target images that decide about candidates."""

from typing import Self

from pydantic import Field, model_validator

from configs.buffer import LabelEntries, LabelFormat, SourceSettings
from configs.section import ConfigPath, Section


class CanaryAdvanced(Section):
    """How labels of `canary.labels` are read, when they differ from those of `source`."""

    label_format: LabelFormat | None = None
    """As `source.label_format`. Without it the three settings here are those of `source`, or its defaults."""
    label_suffix: str = ""
    """As `source.label_suffix`."""
    label_map: LabelEntries = Field(default_factory=dict)
    """As `source.label_map`."""

    @model_validator(mode="after")
    def _format_says_whose(self) -> Self:
        if self.label_format is None and (self.label_suffix or self.label_map):
            raise ValueError("label_suffix and label_map need label_format; without it all three are those of source")
        return self


class CanarySettings(Section):
    """A few labelled target images. Five or more decide about a candidate before any vote; fewer can only veto.

    `mfmd canary add` puts images into the state directory, which count too. No round ever trains on one.
    """

    images: ConfigPath | None = None
    """Folder of labelled target images of your own; mfmd only reads it."""
    labels: ConfigPath | None = None
    """Folder of their labels: the same stem as the image."""
    advanced: CanaryAdvanced = CanaryAdvanced()

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.images is None) != (self.labels is None):
            raise ValueError("set both images and labels, or neither")
        return self

    def as_source(self, source: SourceSettings | None) -> SourceSettings | None:
        """Return how the configured folders are read, as settings of labelled images; None without folders."""
        if self.images is None or self.labels is None:
            return None
        own, shared = self.advanced, {} if source is None else {"ignore_index": source.ignore_index}
        if own.label_format is not None:
            shared |= own.model_dump()
        elif source is not None:
            shared |= source.model_dump(include={"label_format", "label_suffix", "label_map"})
        return SourceSettings.model_validate({"images": self.images, "labels": self.labels, **shared})
