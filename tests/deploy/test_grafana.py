"""The dashboard is what its script writes, and asks for metrics that exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "grafana"
DASHBOARD = json.loads((FOLDER / "mfmd.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_the_committed_dashboard_is_what_the_script_writes(tmp_path: Path) -> None:
    script = tmp_path / "dashboard.py"
    script.write_bytes((FOLDER / "dashboard.py").read_bytes())
    subprocess.run([sys.executable, script], check=True, timeout=60)
    assert json.loads((tmp_path / "mfmd.json").read_text(encoding="utf-8")) == DASHBOARD


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_query_asks_for_documented_metrics_of_the_chosen_source(panel: dict) -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    kinds = dict(re.findall(r"^\| `(mfmd_\w+)` \| (\w+) \|", page, flags=re.MULTILINE))
    known = {f"{name}_bucket" if kind == "histogram" else name for name, kind in kinds.items()}
    assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}
    letters = [target["refId"] for target in panel["targets"]]
    assert len(set(letters)) == len(letters) > 0
    for target in panel["targets"]:
        named = set(re.findall(r"\b(?:mfmd|process)_\w+", target["expr"]))
        assert named and named <= known | {"process_resident_memory_bytes"}, target["expr"]
