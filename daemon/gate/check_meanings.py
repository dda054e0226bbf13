"""What each check of the gate asks, in one sentence (docs/explanation/gate.md has the formulas)."""

MEANINGS = {
    "completed": "The round must run to its end.",
    "finite": "No weight and no output may be NaN or infinite.",
    "tensors": "The candidate must have the tensors of the serving version.",
    "vanished_class": "No class may disappear from the frames (bound: least share of its expected area).",
    "agreement": "A candidate that changes almost everything took too large a step (bound: least equal share).",
    "source_miou": "On labelled source images it may lose little against the released model (value: loss of mIoU).",
    "source_class_iou": "No single class may be lost on labelled source images (bound: largest loss of IoU).",
    "forgetting": "A clear cost in another condition counts as `gate.forgetting` says (bound: conditions).",
    "canary": "True mIoU on target images that a person labelled; it goes before every vote.",
    "holdout_bursts": "Neighbouring frames are hardly more evidence than one (bound: fewest independent bursts).",
    "vote_diversity": "Better predictions are sure and of many classes (batch nuclear norm).",
    "vote_disagreement": "Better predictions change less when parts of the network are switched off (estimated error).",
    "vote_flip": "Better predictions stay the same when the image is mirrored.",
    "vote_styled_source": "True mIoU on labelled source images that were given the look of the new frames.",
    "shadow_images": "Enough live images must be compared (bound: images).",
    "shadow_failed": "The candidate may fail on few live images (bound: largest share).",
    "shadow_agreement": "On live images it must mostly agree with the serving version (bound: least share of pixels).",
}
"""By name of the check; one for each of `storage.rounds.verdict.CHECKS`."""
