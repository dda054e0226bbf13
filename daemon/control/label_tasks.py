"""Canary labels by the page: what needs networks or decodes images runs as a command in a process of its own.

    suggestions/      what `mfmd canary suggest` wrote
    suggestions.zip   the same for a download
    upload.zip        what a person sends back, for `mfmd canary add`
    log               output of the newest command
    work/             temporary files of the command that runs

They lie in a temporary folder (`TMPDIR`), because the commands take none in the state directory. They end with the
daemon; the next one removes those of a daemon that was killed.
"""

import os
import shutil
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import BinaryIO, Literal

from daemon.control.errors import ApiError
from daemon.runtime.in_force import SNAPSHOT
from daemon.runtime.logs import get_logger
from daemon.runtime.process_group import PYTHON, ProcessGroup
from storage.durable.record import lines_of
from storage.layout import StateLayout

Kind = Literal["suggest", "add"]
TASK_SECONDS = 600.0
"""Longest time of a command (seconds)."""
GRACE_SECONDS = 2.0
NICE = 10
"""Answers and rounds come first."""
LOG_BYTES = 16 * 1024
"""End of a command's output that is shown (bytes)."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """The newest command."""

    kind: Kind
    state: Literal["running", "done", "failed"]
    output: tuple[str, ...]
    """Lines that it wrote."""
    seconds: float
    """How long it has run, or ran (seconds)."""


class LabelTasks:
    """Runs one command at a time. Any thread may call it."""

    def __init__(self, layout: StateLayout) -> None:
        self._layout = layout
        self._place: TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()
        self._group: ProcessGroup | None = None
        self._kind: Kind = "suggest"
        self._status: int | None = None
        self._started, self._seconds = 0.0, 0.0
        self._timer: threading.Timer | None = None
        self._prefix = f"mfmd-label-{layout.identity().replace(':', '-')}-"
        for left in Path(gettempdir()).glob(f"{self._prefix}*"):
            shutil.rmtree(left, ignore_errors=True)

    def suggest(self, count: int) -> None:
        """Start to suggest frames; what was suggested before is removed. Raises ApiError 409 while a command runs."""
        with self._lock:
            self._require_idle()
            self._remove()
            self._run("suggest", [str(count), "--out", str(self._folder / "suggestions")])

    def add(self, upload: BinaryIO, *, unchanged: bool) -> None:
        """Start to add what a person sent, a zip archive. Raises ApiError 409 while a command runs, and OSError."""
        with self._lock:
            self._require_idle()
            images = self._folder / "suggestions" / "images"
            try:
                with self._upload.open("wb") as file:
                    shutil.copyfileobj(upload, file)
            except OSError:
                self._upload.unlink(missing_ok=True)  # a full disk gets its space back
                raise
            more = ["--images", str(images)] if images.is_dir() else []
            self._run("add", [str(self._upload), *more, *(["--unchanged"] if unchanged else [])])

    def task(self) -> Task | None:
        """Return the newest command; None before the first."""
        with self._lock:
            self._look()
            if self._started == 0.0:
                return None
            state: Literal["running", "done", "failed"] = "done" if self._status == 0 else "failed"
            lines = [line.decode(errors="replace").rstrip() for line in lines_of(self._log, LOG_BYTES)]
            return Task(self._kind, "running" if self._group else state, tuple(filter(None, lines)), self._seconds)

    def archive(self) -> Path | None:
        """Return a zip of the suggestions, made at the first call; None while there are none."""
        with self._lock:
            self._look()
            if self._place is None:
                return None
            made, source = self._folder / "suggestions.zip", self._folder / "suggestions"
            if (self._group is not None and self._kind == "suggest") or not source.is_dir():
                return None
            if not made.exists():
                half = made.with_suffix(".part")
                with zipfile.ZipFile(half, "w") as archive:
                    for path in filter(Path.is_file, sorted(source.rglob("*"))):
                        archive.write(path, path.relative_to(source))
                half.rename(made)
            return made

    def close(self) -> None:
        """End the command that runs, and remove everything."""
        with self._lock:
            if self._group is not None:
                self._group.stop(GRACE_SECONDS)
                self._group = None
                self._clear()
            self._remove()

    def _clear(self) -> None:
        """Remove what a command that has ended leaves: a half suggestion would be offered for a download."""
        if self._timer is not None:
            self._timer.cancel()
        self._upload.unlink(missing_ok=True)
        shutil.rmtree(self._work, ignore_errors=True)
        if self._kind == "suggest" and self._status != 0:
            shutil.rmtree(self._folder / "suggestions", ignore_errors=True)

    def _remove(self) -> None:
        if self._place is not None:
            self._place.cleanup()
            self._place = None

    @property
    def _folder(self) -> Path:
        """Return the folder, which is made when it is first needed."""
        if self._place is None:
            self._place = TemporaryDirectory(prefix=self._prefix, ignore_cleanup_errors=True)
        return Path(self._place.name)

    @property
    def _upload(self) -> Path:
        return self._folder / "upload.zip"

    @property
    def _work(self) -> Path:
        return self._folder / "work"

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _require_idle(self) -> None:
        self._look()
        if self._group is not None:
            raise ApiError(409, "label_task_running", f"`mfmd canary {self._kind}` is running; wait for its end")

    def _run(self, kind: Kind, arguments: list[str]) -> None:
        self._log.unlink(missing_ok=True)
        self._work.mkdir(exist_ok=True)
        settings = str(self._layout.run_file(SNAPSHOT))
        command = [*PYTHON, "-m", "daemon.cli", "canary", kind, *arguments, "--config", settings]
        environment = {**os.environ, "TMPDIR": str(self._work)}
        self._group = ProcessGroup(self._layout, command, log=self._log, nice=NICE, environment=environment)
        self._kind, self._started = kind, time.monotonic()
        self._timer = threading.Timer(TASK_SECONDS, self.task)  # its time also ends while nobody looks
        self._timer.daemon = True
        self._timer.start()
        log.info("label_task_started", command=f"canary {kind}", pid=self._group.pid)

    def _look(self) -> None:
        """Note the end of the command, or end it when its time is over."""
        if self._group is None:
            return
        self._seconds = time.monotonic() - self._started
        status = self._group.poll()
        if status is None and self._seconds < TASK_SECONDS:
            return
        if status is None:
            status = self._group.stop(GRACE_SECONDS)
            with self._log.open("a") as output:
                output.write(f"\nmfmd canary {self._kind}: ended after {TASK_SECONDS:g} s; it takes too long\n")
        self._status, self._group = status, None
        self._clear()
        log.info("label_task_ended", command=f"canary {self._kind}", status=self._status)
