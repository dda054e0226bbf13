"""Files that a daemon leaves for other commands: what it does, and where it answers."""

from daemon.runtime.activity import Activity, ActivityWriter, IngestActivity, read_activity
from daemon.runtime.run_record import read_run_record


def test_run_files_that_cannot_be_read_are_none(tmp_path):
    path = tmp_path / "serve.json"
    assert read_run_record(path) is None
    path.write_text("{")
    assert read_run_record(path) is None
    assert read_activity(path) is None


def test_activity_is_written_when_it_changes(layout):
    activities = [Activity(), Activity(), Activity(ingest=IngestActivity(state="paused", reason="full"))]
    writer = ActivityWriter(layout.run_file("activity"), lambda: activities.pop(0))
    writer.step()
    first = layout.run_file("activity").stat().st_ino
    writer.step()
    assert layout.run_file("activity").stat().st_ino == first
    writer.step()
    assert read_activity(layout.run_file("activity")).ingest.reason == "full"
    writer.close()
    assert not layout.run_file("activity").exists()
