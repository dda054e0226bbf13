"""The settings in force: resolved once at the start of a process, handed to its children, changed by a reload only.

The daemon writes them to `run/settings.json` (mode 0600, because it may hold `serving.token`) and starts its children
with that file. An edit of the configuration file changes nothing in a running system before a reload.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from configs.errors import ConfigError
from configs.live import changed, is_live, with_live
from configs.load import STATE_VARIABLE, load_settings, state_directory
from configs.settings import Settings
from daemon.runtime.activity import FileActivity, read_activity
from daemon.runtime.logs import configure_logs, get_logger
from daemon.runtime.signals import on_signals
from storage import durable
from storage.errors import StorageError
from storage.layout import StateLayout

SNAPSHOT = "settings"
"""Name of the run file."""

log = get_logger(__name__)


class Reloaded(BaseModel):
    """What a reload did."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    applied: list[str]
    """Dotted names of the settings that changed."""
    restart: list[str]
    """Those that differ in the file and need a restart."""


class SettingsInForce:
    """The settings of this process and the file that they came from. Any thread may use it."""

    def __init__(self, settings: Settings, file: Path) -> None:
        self.now = settings
        self.after_reload: Callable[[bool], None] = lambda done: None
        """Called after each reload with whether it was done."""
        self.around_reload: Callable[[], AbstractContextManager[None]] = nullcontext
        """Each reload happens inside one."""
        self._file = file
        self._snapshot: Path | None = None
        self._lock = threading.Lock()
        self._seen: object = None
        self._activity = FileActivity(file=str(file))

    def publish(self, snapshot: Path) -> None:
        """Write the settings for children, now and after each reload. Raises OSError or DurabilityLost."""
        with self._lock:
            self._snapshot = snapshot
            self._write(self.now)

    def compare(self) -> FileActivity:
        """Compare the file with the settings in force. Read it only when it or the settings changed."""
        with self._lock:
            seen = (_version(self._file), self.now)
            if seen != self._seen:
                self._seen, before = seen, self._activity
                self._activity = self._compared()
                if self._activity != before:
                    log.warning("settings_file_changed", **self._activity.model_dump())
            return self._activity

    def reload(self) -> Reloaded:
        """Take over the live settings of the file.

        Raises ConfigError when the file is not valid, and OSError or DurabilityLost when the settings cannot be
        written for children; then nothing changes.
        """
        try:
            with self.around_reload(), self._lock:
                done = self._take_over()
        except (ConfigError, OSError, StorageError) as error:
            log.error("settings_not_reloaded", error=str(error))
            self.after_reload(False)
            raise
        configure_logs(self.now.log)
        log.info("settings_reloaded", applied=done.applied, needs_restart=done.restart)
        self.after_reload(True)
        return done

    def _take_over(self) -> Reloaded:
        wanted = self._read_again()
        try:
            settings = with_live(self.now, wanted)
        except ValidationError as error:
            reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            raise ConfigError(f"{self._file}: only a restart applies it: {reason}") from error
        self._write(settings)
        done = Reloaded(applied=[*changed(self.now, settings)], restart=[*changed(settings, wanted)])
        self.now = settings
        return done

    def _compared(self) -> FileActivity:
        try:
            names = [*changed(self.now, self._read_again())]
        except ConfigError as error:
            return FileActivity(file=str(self._file), problem=str(error))
        live = [name for name in names if is_live(name)]
        return FileActivity(file=str(self._file), reload=live, restart=[name for name in names if name not in live])

    def _read_again(self) -> Settings:
        if self._file.exists() and not self._file.is_file():  # a pipe: nobody would ever write to it
            raise ConfigError(f"{self._file}: no regular file, so it cannot be read again; a restart applies changes")
        return load_settings(self._file)

    def _write(self, settings: Settings) -> None:
        if self._snapshot is not None:
            durable.write_text(self._snapshot, _resolved(settings), mode=0o600)


@contextmanager
def reloaded_on_hang_up(in_force: SettingsInForce) -> Iterator[None]:
    """Reload on SIGHUP, which would otherwise end the process. The log has the result."""

    def reload() -> None:
        with suppress(ConfigError, OSError, StorageError):  # logged, and nothing changed
            in_force.reload()

    with on_signals(lambda: threading.Thread(target=reload, name="reload").start(), signal.SIGHUP):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        yield


def running_settings(config: Path) -> Settings:
    """Return the settings of the daemon that runs on the state directory; without one those in `config`.

    If the file is not valid, the daemon must have been started with it, or `MFMD_STATE` must name the directory.
    Otherwise raises ConfigError.
    """
    try:
        settings = load_settings(config)
    except ConfigError:
        layout = StateLayout(state_directory(config))
        found = _published(layout)
        guessed = not os.environ.get(STATE_VARIABLE)
        if found is None or (guessed and Path(compared(layout).file).resolve() != config.resolve()):
            raise
        return found
    return _published(StateLayout(settings.state)) or settings


def compared(layout: StateLayout) -> FileActivity:
    """Return how the daemon on a state directory compares its configuration file with the settings in force."""
    activity = read_activity(layout.run_file("activity")) if layout.locked() else None
    return FileActivity() if activity is None else activity.settings


def _published(layout: StateLayout) -> Settings | None:
    try:
        content = layout.run_file(SNAPSHOT).read_bytes() if layout.locked() else b""
        return Settings.model_validate_json(content)
    except (OSError, ValueError):
        return None


def _resolved(settings: Settings) -> str:
    """Return the settings as JSON, with the tokens of the inference plane and without the control token."""
    values = settings.model_dump(mode="json")
    values["control"]["token"] = None
    secrets = {name: value for name, value in settings.serving if isinstance(value, SecretStr)}
    values["serving"] |= {name: value.get_secret_value() for name, value in secrets.items()}
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _version(file: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is written or replaced; None when it cannot be read."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns
