"""The addresses of both planes: free, or held by our own processes; public only with a token."""

import os
import socket

from configs.settings import Settings
from daemon.doctor.finding import Finding
from daemon.run_files import RunFile, read_run_file
from daemon.token import is_loopback
from storage.layout import StateLayout


def examine_ports(settings: Settings) -> list[Finding]:
    """Findings about `control` and `serving` addresses."""
    layout = StateLayout(settings.state)
    findings = [_port(layout, "daemon", "control", settings.control.host, settings.control.port)]
    if settings.serving.enabled:
        findings.append(_port(layout, "serve", "serving", settings.serving.host, settings.serving.port))
    return [*findings, _token(settings)]


def _port(layout: StateLayout, run_name: str, section: str, host: str, port: int) -> Finding:
    name, address = f"{section}_port", f"{host}:{port}"
    own = _own(layout, run_name)
    if own is not None:
        return Finding.ok(name, f"{own.host}:{own.port}, held by our process {own.pid}")
    if port == 0:
        return Finding.ok(name, f"{host}, the system chooses the port")
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        remedy = f"stop what holds it, or set {section}.port and {section}.host to an address of this machine"
        return Finding.fail(name, f"{address} cannot be bound: {error.strerror or error}", remedy)
    return Finding.ok(name, f"{address} is free")


def _own(layout: StateLayout, run_name: str) -> RunFile | None:
    """What the run file says, when its process lives; a kill leaves the file behind."""
    file = read_run_file(layout.run_file(run_name))
    if file is None:
        return None
    try:
        os.kill(file.pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return file  # alive, and another user's
    return file


def _token(settings: Settings) -> Finding:
    control = settings.control
    if not is_loopback(control.host) and control.token is None and control.token_file is None:
        remedy = "set control.token_file (or MFMD_CONTROL__TOKEN), or bind 127.0.0.1; `mfmd run` refuses to start"
        return Finding.fail(
            "control_token", f"control.host {control.host} can be reached from outside, without a token", remedy
        )
    if control.token_file is not None and not os.access(control.token_file, os.R_OK):
        remedy = "write a token to it and let the user that runs mfmd read it"
        return Finding.fail("control_token", f"{control.token_file} cannot be read", remedy)
    if control.token is not None or control.token_file is not None:
        return Finding.ok("control_token", "configured")
    return Finding.ok("control_token", "made by `mfmd run` in the state directory, for this machine's user only")
