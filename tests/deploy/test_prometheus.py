"""The rules for Prometheus name metrics that exist; each alert has a page, a case that fires and one that does not."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RUNBOOK = ROOT / "docs" / "how-to" / "runbook.md"
PROMTOOL = shutil.which("promtool")
CASES = sorted(FOLDER.glob("alerts_*test.yml"))
COMMANDS = (("check", "config", "prometheus.yml"), ("test", "rules", *(path.name for path in CASES)))


def rules(file: str) -> list[dict[str, Any]]:
    """Return the rules of all groups of `file`."""
    groups = yaml.safe_load((FOLDER / file).read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = rules("alerts.yml")
RECORDED = rules("recording.yml")


def test_every_metric_of_a_rule_is_documented_and_so_exposed() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    kinds = dict(re.findall(r"^\| `(mfmd_\w+)` \| (\w+) \|", page, flags=re.MULTILINE))
    known = {f"{name}_bucket" if kind == "histogram" else name for name, kind in kinds.items()}
    for rule in [*ALERTS, *RECORDED]:
        assert set(re.findall(r"\bmfmd_\w+", rule["expr"])) <= known, rule


def test_every_recorded_series_is_recorded_and_used() -> None:
    used = {name for rule in [*ALERTS, *RECORDED] for name in re.findall(r"mfmd:[\w:]+", rule["expr"])}
    assert used == {rule["record"] for rule in RECORDED}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_it_is_and_leads_to_its_section(rule: dict[str, Any]) -> None:
    name, severity = rule["alert"], rule["labels"]["severity"]
    assert severity in ("critical", "warning")
    assert rule["annotations"]["summary"]
    page, anchor = rule["annotations"]["runbook_url"].split("#")
    assert (ROOT / page, anchor) == (RUNBOOK, name.lower())
    assert f"\n### {name}\n\n{severity.capitalize()}. " in RUNBOOK.read_text(encoding="utf-8")


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    cases = [case for path in CASES for case in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]]
    wanted = [f"{rule['alert']} {end}" for rule in ALERTS for end in ("fires", "stays quiet")]
    assert sorted(case["name"] for case in cases) == sorted(wanted)
    sections = re.findall(r"^### (\w+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(sections) == sorted(rule["alert"] for rule in ALERTS)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool (of the Debian package prometheus) is not installed")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_promtool_accepts_them(command: tuple[str, ...]) -> None:
    done = subprocess.run([PROMTOOL or "", *command], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
