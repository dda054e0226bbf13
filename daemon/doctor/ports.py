"""The addresses of both planes: free, or held by our own processes; public only with a token; certificates usable."""

import os
import socket
from pathlib import Path
from typing import Literal

from configs.errors import ConfigError
from configs.serving import ControlSettings, ServingSettings
from configs.settings import Settings
from daemon.doctor.finding import Finding, fail, ok, warn
from daemon.net.certificates import RENEW, ending
from daemon.net.listening import Wanted, is_loopback, tls_files
from daemon.net.secret_files import NEW_SECRET, exposure
from daemon.net.token import control_address, serving_address
from daemon.runtime.run_record import current_record
from storage.layout import StateLayout

Section = Literal["control", "serving"]
Plane = ControlSettings | ServingSettings


def examine_ports(settings: Settings) -> list[Finding]:
    """Return findings about `control` and `serving` addresses."""
    layout, control, serving = StateLayout(settings.state), settings.control, settings.serving
    findings = [_port(layout, "daemon", "control", control)]
    if serving.enabled:
        findings.append(_port(layout, "serve", "serving", serving))
    if current_record(layout, "daemon") is None:  # the settings in force hold no control token
        findings.append(_guard(control_address(control), control, layout))
    else:
        findings.append(_kept("control_token", control.token_file or layout.token_file, "the daemon that runs has one"))
    findings += _tls("control", control)
    if serving.enabled:
        findings += [_guard(serving_address(serving), serving, layout), *_tls("serving", serving)]
    return findings


def _port(layout: StateLayout, run_name: str, section: Section, plane: Plane) -> Finding:
    name, host, port = f"{section}_port", plane.host, plane.port
    own = current_record(layout, run_name)
    if own is not None:
        return ok(name, f"{own.host}:{own.port}, held by mfmd, process {own.pid}")
    if port == 0:
        return ok(name, f"{host}, the system chooses the port")
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        another = f"set {section}.port and {section}.host to an address of this machine"
        remedy = f"stop the process that holds it, or {another}"
        return fail(name, f"{host}:{port} cannot be bound: {error.strerror or error}", remedy)
    return ok(name, f"{host}:{port} is free")


def _guard(wanted: Wanted, plane: Plane, layout: StateLayout) -> Finding:
    name, token, token_file = f"{wanted.section}_token", plane.token, plane.token_file
    if not wanted.guarded and not is_loopback(wanted.host):
        remedy = f"{wanted.remedy}, or bind 127.0.0.1; otherwise it does not start"
        problem = f"{wanted.section}.host {wanted.host} can be reached from outside, without a token"
        return fail(name, problem, remedy)
    if token is None and token_file is not None and not os.access(token_file, os.R_OK):
        remedy = "write a token to it and let the user that runs mfmd read it"
        return fail(name, f"{token_file} cannot be read", remedy)
    if token is not None:
        return ok(name, "configured")
    if token_file is not None:
        return _kept(name, token_file, "configured")
    if wanted.section == "control":
        made = "made by `mfmd run` in the state directory, for this machine's user only"
        return _kept(name, layout.token_file, made)
    who = "anyone who can connect" if wanted.guarded else "every user of this machine"
    return ok(name, f"none: {who} can request masks")


def _kept(name: str, secret: Path, fine: str) -> Finding:
    """Return the finding `fine` about a file with a secret, or who else can read or replace it."""
    exposed = exposure(secret)
    return warn(name, exposed, NEW_SECRET) if exposed else ok(name, fine)


def _tls(section: Section, plane: Plane) -> list[Finding]:
    name = f"{section}_tls"
    try:
        files = tls_files(section, plane.certificate, plane.key)
    except ConfigError as error:
        return [fail(name, str(error), "give a matching certificate and key; otherwise it does not start")]
    if files is None:
        return []
    end = ending(files.certificate)
    expires = [warn(f"{section}_certificate", end, RENEW)] if end else []
    return [*expires, _kept(name, files.key, f"certificate {files.certificate}")]
