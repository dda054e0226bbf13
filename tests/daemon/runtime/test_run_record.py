"""Records of processes: current while the process runs on this state directory, stale in every other case."""

import subprocess
import sys

import psutil
import pytest

from daemon.runtime.run_record import current_record, publish_record, read_run_record
from storage.layout import StateLayout


def test_a_record_is_current_while_its_process_lives(layout):
    record = publish_record(layout, "serve", "127.0.0.1", 8009)
    assert current_record(layout, "serve") == record
    assert record.since == pytest.approx(psutil.Process().create_time(), abs=2.0)


@pytest.mark.parametrize("change", [{"machine": "other"}, {"boot": "other"}, {"started": 1.0}, {"pid": 1}])
def test_a_record_of_another_process_is_stale(layout, change):
    record = publish_record(layout, "serve", "127.0.0.1", 8009)
    layout.run_file("serve").write_text(record.model_copy(update=change).model_dump_json())
    assert read_run_record(layout.run_file("serve")) is not None
    assert current_record(layout, "serve") is None


def test_a_record_is_stale_once_its_process_ended(layout):
    code = (
        "import sys; from pathlib import Path; from storage.layout import StateLayout\n"
        "from daemon.runtime.run_record import publish_record, current_record\n"
        "layout = StateLayout(Path(sys.argv[1]))\n"
        "assert publish_record(layout, 'serve', '127.0.0.1', 8009) == current_record(layout, 'serve')"
    )
    subprocess.run([sys.executable, "-c", code, str(layout.root)], check=True)
    assert read_run_record(layout.run_file("serve")) is not None
    assert current_record(layout, "serve") is None


def test_a_copied_record_is_stale(layout, tmp_path):
    publish_record(layout, "serve", "127.0.0.1", 8009)
    copy = StateLayout(tmp_path / "copy")
    subprocess.run(["cp", "-a", layout.root, copy.root], check=True)
    assert current_record(copy, "serve") is None
    assert current_record(layout, "serve") is not None


def test_a_file_that_cannot_be_read_is_no_record(layout):
    assert current_record(layout, "serve") is None
    layout.run_file("serve").write_text("{")
    assert current_record(layout, "serve") is None
