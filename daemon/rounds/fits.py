"""Frames that show images otherwise than the serving version sees them: no round trains or scores on them."""

from collections.abc import Sequence

from configs.buffer import BufferSettings
from daemon.errors import FitMismatch
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.fits import made_otherwise
from storage.media.images import Fit
from storage.registry.manifest import Manifest


def check_fit(buffer: BufferSettings, serving: Manifest) -> None:
    """Raise FitMismatch when frames and labelled images are made otherwise than the serving version sees images."""
    made, served = Fit.of(buffer), Fit(serving.input_fit, serving.input_resample)
    if made != served:
        raise FitMismatch(
            f"buffer.advanced is {_said(made)}, and version {serving.version} serves with {_said(served)}: a round "
            f"would train and judge it on other pixels than it serves; set buffer.advanced to {_said(served)}, or "
            "register the model anew (`mfmd import`, `mfmd pretrain`) and promote that version"
        )


def without_others(
    frames: Sequence[FrameRecord], buffer: BufferSettings
) -> tuple[list[FrameRecord], dict[str, tuple[int, ...]]]:
    """Return the frames of the fit of `buffer`, in order, and under the reason `fit` the ids of the others, if any."""
    others = {frame.id for frame in made_otherwise(frames, buffer)}
    alike = [frame for frame in frames if frame.id not in others]
    return alike, {"fit": tuple(sorted(others))} if others else {}


def _said(fit: Fit) -> str:
    return f"{{fit: {fit.mode}, resample: {fit.resample}}}"
