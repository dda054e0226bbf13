"""Small records about canary images; reading them loads neither images nor arrays."""

from pydantic import Field

from storage.durable.record import Record

LEAST_IMAGES = 5
"""Labelled images from which the evidence decides; fewer can only veto."""


class CanaryClasses(Record):
    """`files/classes.json`: what the values of added labels mean."""

    names: tuple[str, ...]
    """Class names by index."""


class CanaryState(Record):
    """`state.json`: what was found when the images were read last."""

    images: int = 0
    """Images that count."""
    checksum: int = 0
    """CRC-32 over all of them with their labels: another one means other labels."""
    problem: str = ""
    """Why they cannot be read; then no candidate is accepted."""


class Suggested(Record):
    """`suggested.json`: masks that `mfmd canary suggest` filled in; what a person left unchanged is no label."""

    masks: dict[int, int] = Field(default_factory=dict)
    """CRC-32 of an image -> CRC-32 of its mask."""
