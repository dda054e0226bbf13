"""`mfmd run`: the daemon from lock to clean stop. It never imports torch: work on tensors runs in child processes."""

import threading
from pathlib import Path

from adapters.tracing.spans import exported
from configs.settings import Settings
from daemon.control.server import ControlServer, bind
from daemon.masks.mask_file import check_masks
from daemon.net.listening import tls_files
from daemon.net.local import listen_locally
from daemon.net.token import control_token
from daemon.parts import DaemonParts
from daemon.runtime.health import Health
from daemon.runtime.in_force import SNAPSHOT, SettingsInForce, reloaded_on_hang_up
from daemon.runtime.logs import configure_logs, get_logger
from daemon.runtime.memory import freeze_heap
from daemon.runtime.run_record import publish_record
from daemon.runtime.service_manager import ServiceManager
from daemon.runtime.signals import stop_event
from daemon.status.messages import nothing_serves
from storage.directory.upgrade import prepare
from storage.errors import NewerRecord, NoCheckpoint, StorageError
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry

log = get_logger(__name__)


def run(settings: Settings, config: Path) -> int:
    """Run the daemon on `settings` until SIGTERM or SIGINT; 0 after a clean stop.

    `config` is the file the settings came from; a reload reads it again. Raises AlreadyRunning, NoCheckpoint,
    ConfigError (a public address without a token, an unusable certificate), AddressInUse, BufferMismatch or another
    StorageError.
    """
    configure_logs(settings.log, "daemon")
    in_force, manager = SettingsInForce(settings, config), ServiceManager()
    in_force.around_reload = manager.reloading
    layout = StateLayout(settings.state)
    check_masks(settings)
    with exported("daemon"), reloaded_on_hang_up(in_force), stop_event() as stop, layout.lock():
        if upgraded := prepare(layout):
            log.info("state_upgraded", steps=upgraded)
        registry = CheckpointRegistry(layout.checkpoints)
        require_version(settings, registry)
        registry.keep_space()
        token = control_token(settings.control, layout)
        tls = tls_files("control", settings.control.certificate, settings.control.key)
        with bind(settings.control) as listener, listen_locally(layout.socket) as local_listener:
            parts = DaemonParts(in_force, token)
            excess = parts.metrics.process.excess
            server = ControlServer(parts.app, listener, tls, excess)
            local = ControlServer(parts.local_app, local_listener, excess=excess)
            try:
                in_force.publish(layout.run_file(SNAPSHOT))
                freeze_heap()
                parts.start()
                server.start()
                local.start()
                publish_record(layout, "daemon", *server.address, tls=tls is not None)
                parts.metrics.process.started.set_to_current_time()
                log.info("daemon_ready", host=server.address[0], port=server.address[1], state=str(layout.root))
                return _wait(stop, parts.health, manager, server, local)
            finally:
                manager.stopping()
                layout.run_file("daemon").unlink(missing_ok=True)
                parts.stop()
                layout.run_file(SNAPSHOT).unlink(missing_ok=True)
                server.stop()
                local.stop()
                log.info("daemon_stopped")


def require_version(settings: Settings, registry: CheckpointRegistry) -> None:
    """Raise NoCheckpoint, with what to do, if no version serves; NewerRecord if a newer mfmd wrote the ref.

    A damaged ref is logged: planes then serve what the history names, ingest works, rounds and the gate wait.
    """
    try:
        serves = registry.serving() is not None
    except NewerRecord:
        raise
    except StorageError as error:
        log.error("serving_ref_damaged", reason=str(error), waits=["rounds", "gate"])
        return
    if not serves:
        raise NoCheckpoint(f"{settings.state}: {nothing_serves(registry.versions(), settings)}")


def _wait(stop: threading.Event, health: Health, manager: ServiceManager, *servers: ControlServer) -> int:
    while all(server.alive for server in servers):
        stuck = ["control: its HTTP server is stuck" for server in servers if server.stuck]
        manager.step([*health.dead(), *stuck], [*health.not_ready(), *stuck])
        if stop.wait(1.0):
            log.info("daemon_stopping")
            return 0
    log.critical("control_server_failed")
    return 1
