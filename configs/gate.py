"""Settings of the gate, and of the checkpoints that it chooses from."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from configs.section import Fraction, NotNegative, NotNegativeInt, Positive, PositiveInt, Seconds, Section


class GateAdvanced(Section):
    """Rarely changed settings of the gate."""

    agreement_floor: Fraction = 0.05
    """Veto: pixel agreement with the incumbent below this; the step is too large for one round."""
    source_class_drop: Fraction = 0.2
    """Veto: a source class IoU below the released model's by more than this (IoU, 0-1)."""
    class_weights: dict[str, NotNegative] = Field(default_factory=dict)
    """How much each class counts in the mIoU that the gate, probation and recall compare: class name: weight, 1 for
    those that are not named, 0 for one that says nothing. In two classes the large one hides the small one: `{vessel:
    1, background: 0}` judges vessels alone."""
    shadow_seconds: Positive = 600.0
    """Longest wait for `shadow_images` (seconds); after it the verdict is inconclusive."""
    vanished_ratio: Fraction = 0.05
    """Veto: a class whose area on hold-out frames falls below this share of the incumbent's."""
    vanished_floor: Fraction = 0.005
    """Classes with less than this area share under the incumbent cannot vanish."""
    bootstrap: PositiveInt = 1000
    """Bootstrap resamples over bursts of neighbouring images."""
    votes_with_source: PositiveInt = 2
    """Votes needed of four when labelled source exists. The batch nuclear norm must be among them, and restyled source
    must not be lost. Fewer accept more."""
    margin_without_labels: Fraction = 0.025
    """Without labelled source the batch nuclear norm must grow by more than this (0-1): rounds that confirm their own
    errors grow it by up to 0.021."""
    min_holdout: PositiveInt = 4
    """With fewer held-out frames, or independent bursts of them, the verdict is inconclusive."""
    shadow_agreement: Fraction = 0.3
    """Veto after a shadow: share of pixels with the label that was served below this."""
    shadow_failures: Fraction = 0.01
    """Veto after a shadow: the candidate raised an error on more than this share of the live images."""


class GateSettings(Section):
    """When a candidate may serve. The default is to keep the incumbent."""

    policy: Literal["auto", "source", "source_free", "canary", "manual", "always"] = "auto"
    """auto: labelled source is evidence when `source` is set. source: as auto, but refuses a configuration without
    `source`. source_free: the gate ignores labelled source. canary: only canary labels accept a
    candidate, five or more. manual: an accepted candidate waits until `mfmd approve N`
    or `mfmd reject N`. always: every whole, finite candidate serves; for experiments."""
    source_drop: Fraction = 0.03
    """Veto: source mIoU below the released model's by more than this (mIoU, 0-1); none while the version that is best
    on source is known, kept and recalled."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.9
    """One-sided confidence of each vote's paired bootstrap."""
    shadow_images: NotNegativeInt = 0
    """An accepted candidate first runs in the shadow until this many live images were compared with what serves; 0: it
    serves at once. Needs `serving.shadow_fraction`."""
    forgetting: Literal["recall", "veto", "allow"] = "recall"
    """What a candidate may cost in conditions other than the newest one. recall: anything while recall is on, because
    the version that is better there is kept and recalled; otherwise like veto. veto: a candidate that is clearly worse
    in one of them is rejected. allow: anything."""
    advanced: GateAdvanced = GateAdvanced()

    def weights(self, class_names: Sequence[str]) -> tuple[float, ...] | None:
        """Return the weight of each class, in order; None when all count alike."""
        given = self.advanced.class_weights
        return tuple(given.get(name, 1.0) for name in class_names) if given else None


class ConditionsAdvanced(Section):
    """Rarely changed settings of conditions."""

    enabled: bool = True
    """Off: every frame is of one condition, and no version is recalled."""
    burst_frames: Annotated[int, Field(ge=2)] = 8
    """Neighbouring frames that together open a condition, or say which one is in force (images)."""
    quantile: Annotated[float, Field(gt=0.5, le=1.0)] = 0.999
    """A frame is outside a condition beyond this quantile of the distances among reference frames (0-1)."""
    reference_frames: Annotated[int, Field(ge=8)] = 32
    """First frames that are the reference when there is no labelled source (images)."""


class ConditionsSettings(Section):
    """The memory of the gate: known conditions of the stream (day, fog, night). Needs `observe.enabled`."""

    most: Annotated[int, Field(ge=2)] = 16
    """Most conditions that are known at once; beyond it the one not seen for longest merges into its neighbour."""
    golden_frames: PositiveInt = 16
    """Held-out frames of each condition that eviction does not take (images); fewer in a small buffer."""
    advanced: ConditionsAdvanced = ConditionsAdvanced()


class ProbationAdvanced(Section):
    """Rarely changed settings of probation."""

    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.98
    """A version that is worse on at most half of the frames stays with at least this probability, at all looks
    together."""
    cooldown_seconds: Seconds = 600.0
    """After a rollback no round starts by itself for this long (seconds); time without a daemon does not count."""


class ProbationSettings(Section):
    """After a promotion: fresh frames are compared, and a version that is worse is rolled back by itself."""

    frames: NotNegativeInt = 32
    """Fresh, thinned frames that are compared with the version before (images); 0: no probation. Needs
    `observe.enabled`."""
    advanced: ProbationAdvanced = ProbationAdvanced()


class RecallAdvanced(Section):
    """Rarely changed settings of recall."""

    enabled: bool = True
    """Off: what serves changes by rounds and operators only. Needs `conditions.advanced.enabled`."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Evidence that a recall needs: a version that is better on at most half of the images is recalled with at most the
    remaining probability."""


class RecallSettings(Section):
    """When the stream returns to a known condition, the version that is best there serves again, without training."""

    dwell_seconds: Seconds = 60.0
    """No second recall within this time, however the stream flickers; a recall that was declined is considered again
    after it (seconds)."""
    advanced: RecallAdvanced = RecallAdvanced()


class DriftAdvanced(Section):
    """Rarely changed settings of drift."""

    starts_round: bool = True
    """Whether an alarm starts a round as soon as `schedule.min_frames` new frames are there."""


class DriftSettings(Section):
    """An alarm when the stream changes under the version that serves, with a known rate of false ones."""

    false_alarms_per_100k: NotNegative = 1.0
    """False alarms allowed in 100,000 frames, also of one unchanged camera whose frames are alike; 0: nothing is
    watched. Needs `observe.enabled`."""
    advanced: DriftAdvanced = DriftAdvanced()


class RegistrySettings(Section):
    """Checkpoints on disk."""

    keep_versions: PositiveInt = 10
    """Versions that served, kept besides serving, previous, released and pinned ones. Of those that never served, the
    two newest candidates and the two newest imports are kept."""
