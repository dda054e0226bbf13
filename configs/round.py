"""Settings of a round, and of when one starts."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from configs.network import OptimSettings
from configs.plugins import SCORES, checked_name
from configs.section import (
    ConfigPath,
    Fraction,
    NotNegative,
    NotNegativeInt,
    Positive,
    PositiveInt,
    Seconds,
    Section,
    bare_no,
)

LeftOut = Literal["blank", "lines", "noise", "blurred", "fault", "ramp", "far", "copies", "flood"]
"""Why a frame of the buffer stays out of rounds; docs/explanation/poison.md says what each means."""
LEFT_OUT: tuple[LeftOut, ...] = get_args(LeftOut)
"""All reasons, in the order in which they are looked for."""


class RoundAdvanced(Section):
    """Rarely changed settings of a round."""

    leave_out: tuple[LeftOut, ...] = LEFT_OUT
    """Reasons for which frames of the buffer are neither trained on nor held out, and, but for copies and floods, no
    evidence for the gate between rounds; empty: none. They stay in the buffer, and are judged again."""
    most_copies: PositiveInt = 4
    """Frames of one and the same picture that a round uses, of those to train on and of held-out ones each (images)."""
    most_source_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75
    """Largest share of a round's frames that one of several sources gives, but not less than `schedule.new_frames`; its
    oldest frames are left out (0-1)."""

    save_steps: Annotated[int, Field(ge=0)] = 200
    """Save the whole training state every this many steps, so that a killed round continues from there; 0 saves at the
    end only."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed; the round number is added to it."""
    inherit: bool = True
    """Start from the training state (teacher, Rebuilder, optimizer, counters) of the round that made the serving
    version. Off, and after a rollback, a round starts clean from the serving weights."""
    restart_after_rejections: NotNegativeInt = 3
    """After this many rejected rounds in a row (with conditions: of the condition of the day), student and teacher of
    the next one start from the released weights, without training state; 0: never (rounds)."""
    gradient_accumulation: PositiveInt = 1
    """Batches whose gradients make one optimizer step."""
    gradient_checkpointing: bool = False
    """Recompute the encoder's activations in the backward pass: less memory on large networks, 15 to 33 % more time."""
    channels_last: bool = True
    """Images and weights channels-last in memory."""
    compile: bool = False
    """Compile student and teacher with torch.compile; pays off on GPUs and long rounds only."""
    sync_batch_norm: bool = True
    """With several processes on GPUs, let BatchNorm normalise over the batches of all of them."""
    loss_limit: Positive = 50.0
    """A loss above this ends the round as failed, like one that is not finite (nats)."""
    stall_seconds: Positive = 900.0
    """A round that makes no progress for so long has failed: no step done, no model scored (seconds)."""
    score_images: PositiveInt = 64
    """Most source validation images and hold-out frames used for scoring (images)."""
    scores: tuple[Annotated[str, AfterValidator(lambda name: checked_name(name, SCORES))], ...] = ()
    """Plug-ins that score each model on hold-out frames; recorded and shown, never a vote."""
    average_ratios: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = (0.25, 0.5, 0.75)
    """Further candidates: averages of the adapted and the serving weights, with this share of the adapted ones (0-1).
    Each costs an estimate of BatchNorm statistics and the scoring of one more model; empty: none."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of a round; 0 leaves torch's choice."""
    accelerate_config: ConfigPath | None = None
    """Accelerate config file for several GPUs or machines; replaces `round.processes` and `round.mixed_precision`."""
    environment: tuple[str, ...] = ()
    """Names of further environment variables that a round is given (shell patterns). It gets the usual ones of the
    system, CUDA, NCCL, torch and Hugging Face, and no others."""
    keep_folders: PositiveInt = 20
    """Round folders kept on disk."""


class RoundSettings(Section):
    """One self-training round."""

    steps: PositiveInt = 1000
    """Step budget; the round ends at the first budget reached."""
    max_seconds: Positive = 3600.0
    """Time budget of the training part (seconds)."""
    batch_size: PositiveInt = 2
    """Source images and target images a step, each, per process."""
    crop_height: Annotated[int, Field(ge=32)] = 512
    """Crop height (pixels); 32 is one cell of the deepest map."""
    crop_width: Annotated[int, Field(ge=32)] = 512
    """Crop width (pixels)."""
    optim: OptimSettings = OptimSettings()
    device: Literal["auto", "cpu"] = "auto"
    """`auto` uses a GPU when there is one."""
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(bare_no)] = "no"
    """Precision of the forward passes."""
    processes: PositiveInt = 1
    """Processes started by `accelerate launch`."""
    advanced: RoundAdvanced = RoundAdvanced()


class ScheduleAdvanced(Section):
    """Rarely changed settings of the schedule."""

    minutes_per_day: NotNegative = 0.0
    """Time that rounds may use a device for in any 24 hours (minutes). A round that would exceed it waits; 0: no limit.
    `mfmd adapt` waits for nothing, but counts."""
    new_share: Fraction = 0.25
    """After a rejected round, in the same condition and without a drift alarm since, the next one waits until this
    share of the buffer's frames is new (0-1): on the same frames it would not help; 0: it does not wait."""
    statistics_first: bool = True
    """After a drift alarm first try BatchNorm statistics of the newest frames alone, which takes seconds."""
    tiny_steps: NotNegativeInt = 100
    """Step budget of the round after a drift alarm within the same condition; 0: always a full round."""


class ScheduleSettings(Section):
    """When a round starts by itself."""

    enabled: bool = True
    """Off: only `mfmd adapt` and the control API start rounds."""
    new_frames: PositiveInt = 200
    """Start when this many frames were committed since the last round began (frames). Fewer are enough when none came
    for a minute: as many as the buffer held before, at least `min_frames`."""
    interval_seconds: Seconds = 0.0
    """Also start when this long has passed since the last round ended and a new frame came (seconds); 0 is never."""
    min_frames: PositiveInt = 16
    """Never start with fewer frames in the buffer (frames)."""
    advanced: ScheduleAdvanced = ScheduleAdvanced()
