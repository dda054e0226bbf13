"""The addresses of both planes: free, or held by our own processes; public only with a token; certificates usable."""

import os
import socket
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from configs.errors import ConfigError
from configs.serving import ControlSettings, ServingSettings
from configs.settings import Settings
from daemon.doctor.finding import Finding
from daemon.net.listening import Wanted, is_loopback, tls_files
from daemon.net.token import control_address, serving_address
from daemon.runtime.run_record import current_record
from storage.layout import StateLayout


def examine_ports(settings: Settings) -> list[Finding]:
    """Return findings about `control` and `serving` addresses."""
    layout = StateLayout(settings.state)
    findings = [_port(layout, "daemon", "control", settings.control.host, settings.control.port)]
    if settings.serving.enabled:
        findings.append(_port(layout, "serve", "serving", settings.serving.host, settings.serving.port))
    control, serving = settings.control, settings.serving
    if current_record(layout, "daemon") is None:  # the settings in force hold no control token
        findings.append(_guard(control_address(control), control.token, control.token_file))
    else:
        findings.append(Finding.ok("control_token", "the daemon that runs has one"))
    findings += filter(None, [_tls(control, "control")])
    if serving.enabled:
        findings.append(_guard(serving_address(serving), serving.token, serving.token_file))
        findings += filter(None, [_tls(serving, "serving")])
    return findings


def _port(layout: StateLayout, run_name: str, section: str, host: str, port: int) -> Finding:
    name, address = f"{section}_port", f"{host}:{port}"
    own = current_record(layout, run_name)
    if own is not None:
        return Finding.ok(name, f"{own.host}:{own.port}, held by mfmd, process {own.pid}")
    if port == 0:
        return Finding.ok(name, f"{host}, the system chooses the port")
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        remedy = (
            f"stop the process that holds it, or set {section}.port and {section}.host to an address of this machine"
        )
        return Finding.fail(name, f"{address} cannot be bound: {error.strerror or error}", remedy)
    return Finding.ok(name, f"{address} is free")


def _guard(wanted: Wanted, token: SecretStr | None, token_file: Path | None) -> Finding:
    """Whether the plane may listen where it is told to, and whether its token can be read."""
    name = f"{wanted.section}_token"
    if not wanted.guarded and not is_loopback(wanted.host):
        remedy = f"{wanted.remedy}, or bind 127.0.0.1; otherwise it does not start"
        problem = f"{wanted.section}.host {wanted.host} can be reached from outside, without a token"
        return Finding.fail(name, problem, remedy)
    if token is None and token_file is not None and not os.access(token_file, os.R_OK):
        remedy = "write a token to it and let the user that runs mfmd read it"
        return Finding.fail(name, f"{token_file} cannot be read", remedy)
    if token is not None or token_file is not None:
        return Finding.ok(name, "configured")
    if wanted.section == "control":
        return Finding.ok(name, "made by `mfmd run` in the state directory, for this machine's user only")
    who = "anyone who can connect" if wanted.guarded else "every user of this machine"
    return Finding.ok(name, f"none: {who} can request masks")


def _tls(section: ControlSettings | ServingSettings, name: Literal["control", "serving"]) -> Finding | None:
    """Whether certificate and key can be used; nothing to say about plain HTTP."""
    try:
        files = tls_files(name, section.certificate, section.key)
    except ConfigError as error:
        return Finding.fail(
            f"{name}_tls", str(error), "give a matching certificate and key; otherwise it does not start"
        )
    return None if files is None else Finding.ok(f"{name}_tls", f"certificate {files.certificate}")
