"""`mfmd demo`: the whole job on drawn street scenes, with nothing to download or configure.

StepRng a source (day, with labels) and a target (dusk, without), trains on day, starts the real daemon, drops dusk
images into its folder, and scores what the inference plane answers on dusk scenes whose labels the daemon never saw.
"""

import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.demo.driving import DrivenDaemon
    from daemon.demo.story import Story

DEFAULT_OUT = Path("out/demo")
"""Where report and picture go."""


def run_demo(keep: bool, out: Path | None) -> int:
    """Run the demo; report and picture go to `out`, state to a temporary directory that `keep` leaves, daemon running.

    Returns 0 when a candidate was promoted and the served mIoU rose by five points, else 3; 130 after Ctrl-C.
    Raises DriveFailed, StorageError or AdapterError when a step fails; the directory then stays.
    """
    from rich.console import Console

    from daemon.demo.display import Display
    from daemon.demo.story import Story
    from daemon.exit_codes import ExitCode
    from daemon.runtime.signals import on_signals

    console = Console()
    story = Story(Path(tempfile.mkdtemp(prefix="mfmd-demo-")), Display(console))
    driven = story.configure()
    try:
        with on_signals(_interrupt, signal.SIGTERM):  # cleans up as Ctrl-C does
            passed = _tell(story, driven, console, out or DEFAULT_OUT)
    except KeyboardInterrupt:
        driven.stop()
        story.remove()
        console.print("Interrupted; the daemon is stopped and its directory removed.")
        return ExitCode.INTERRUPTED
    except BaseException:
        driven.stop()
        console.print(f"The demo failed; its state stays in {story.workspace}", highlight=False)
        raise
    _leave_or_remove(story, driven, console, keep)
    return ExitCode.OK if passed else ExitCode.NOT_ACCEPTED


def _interrupt(*_: object) -> NoReturn:
    """Clean up after SIGTERM as after Ctrl-C."""
    raise KeyboardInterrupt


def _tell(story: "Story", driven: "DrivenDaemon", console: "Console", out: Path) -> bool:
    """Run the story from the first scene to the report; return True when it kept its promise."""
    from daemon.demo.report import DemoReport
    from daemon.demo.story import BATCHES

    with story.display:
        camera = story.draw(BATCHES * driven.settings.schedule.new_frames)
        story.pretrain(driven)
        story.start(driven)
        story.adapt(driven, camera)
    report = DemoReport(story.steps, driven.settings.classes)
    picture = report.write(out, story.test_pairs())
    report.print(console)
    outcome = "The demo reached its goal" if report.passed else "The demo missed its goal"
    console.print(
        f"{outcome}: served mIoU {100 * report.rise:+.1f} points in {story.elapsed():.0f} s.\n"
        f"Picture: {picture}\nNumbers: {out / 'report.json'}",
        highlight=False,
        soft_wrap=True,
    )
    return report.passed


def _leave_or_remove(story: "Story", driven: "DrivenDaemon", console: "Console", keep: bool) -> None:
    if not keep:
        driven.stop()
        story.remove()
        console.print("Next: `mfmd demo --keep` leaves the daemon running; `mfmd init` points it at your own folder.")
        return
    mfmd = f"{sys.executable} -m daemon.cli"
    console.print(
        f"The daemon keeps running. Drop images into {driven.settings.watch.folder}\n"
        f"  status     {mfmd} status --config {story.config}\n"
        f"  metrics    {driven.url('daemon')}/metrics and {driven.url('serve')}/metrics\n"
        f"  ask        curl --data-binary @IMAGE.png '{driven.url('serve')}/v1/segment?format=color' -o mask.png\n"
        f"  roll back  {mfmd} rollback --config {story.config}\n"
        f"  stop       kill {driven.leave()}\n"
        f"  remove     rm -r {story.workspace}   (once it has stopped)",
        highlight=False,
        soft_wrap=True,
    )
