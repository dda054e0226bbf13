"""Canary labels by the page: what needs networks or decodes images runs as a command in a process of its own.

    suggestions/      what `mfmd canary suggest` wrote
    suggestions.zip   the same for a download
    upload.zip        what a person sends back, for `mfmd canary add`
    log               output of the newest command

They lie in a temporary folder (`TMPDIR`), because the commands take none in the state directory. They end with the
daemon.
"""

import shutil
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
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

    def suggest(self, count: int) -> None:
        """Start to suggest frames; what was suggested before is removed. Raises ApiError 409 while a command runs."""
        with self._lock:
            self._begin("suggest")
            self._remove()
            self._run(["suggest", str(count), "--out", str(self._folder / "suggestions")])

    def add(self, upload: BinaryIO, *, unchanged: bool) -> None:
        """Start to add what a person sent, a zip archive. Raises ApiError 409 while a command runs, and OSError."""
        images = self._folder / "suggestions" / "images"
        with self._lock:
            self._begin("add")
            with self._upload.open("wb") as file:
                shutil.copyfileobj(upload, file)
            more = ["--images", str(images)] if images.is_dir() else []
            self._run(["add", str(self._upload), *more, *(["--unchanged"] if unchanged else [])])

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
            self._remove()

    def _remove(self) -> None:
        if self._place is not None:
            self._place.cleanup()
            self._place = None

    @property
    def _folder(self) -> Path:
        """Return the folder, which is made when it is first needed."""
        if self._place is None:
            self._place = TemporaryDirectory(prefix="mfmd-label-", ignore_cleanup_errors=True)
        return Path(self._place.name)

    @property
    def _upload(self) -> Path:
        return self._folder / "upload.zip"

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _begin(self, kind: Kind) -> None:
        self._look()
        if self._group is not None:
            raise ApiError(409, "label_task_running", f"`mfmd canary {self._kind}` is running; wait for its end")
        self._kind = kind

    def _run(self, arguments: list[str]) -> None:
        self._log.unlink(missing_ok=True)
        command = [*PYTHON, "-m", "daemon.cli", "canary", *arguments, "--config", str(self._layout.run_file(SNAPSHOT))]
        self._group = ProcessGroup(self._layout, command, log=self._log, nice=NICE)
        self._started = time.monotonic()
        log.info("label_task_started", command=f"canary {arguments[0]}", pid=self._group.pid)

    def _look(self) -> None:
        """Note the end of the command, or end it when its time is over."""
        if self._group is None:
            return
        self._seconds = time.monotonic() - self._started
        status = self._group.poll()
        if status is None and self._seconds < TASK_SECONDS:
            return
        self._status = self._group.stop(GRACE_SECONDS) if status is None else status
        self._group = None
        if self._kind == "add":
            self._upload.unlink(missing_ok=True)
        log.info("label_task_ended", command=f"canary {self._kind}", status=self._status)
