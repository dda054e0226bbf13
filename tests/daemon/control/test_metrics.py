"""Metrics: every one explained, every series there from the start, the numbers those of the state directory."""

import re
import time

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.control.state_metrics import StateCollector
from daemon.metrics import Metrics
from daemon.runtime.activity import ChildActivity
from storage.buffer.observations import Observation, Observations
from storage.rounds.folder import RoundStore
from storage.rounds.records import RoundScores, RoundSpec
from storage.rounds.verdict import Check, Verdict

EXPECTED = [
    "mfmd_masks_total",
    "mfmd_masks_pending",
    "mfmd_masks_active",
    "mfmd_masks_folder_present",
    "mfmd_masks_last_written_timestamp_seconds",
    "mfmd_notifications_total",
    "mfmd_publish_total",
    "mfmd_publish_version",
    "mfmd_build_info",
    "mfmd_config_hash_info",
    "mfmd_config_file_valid",
    "mfmd_config_changed_settings",
    "mfmd_config_reloads_total",
    "mfmd_excess_connections_total",
    "mfmd_start_timestamp_seconds",
    "mfmd_state_readable",
    "mfmd_state_read_failures_total",
    "mfmd_secret_exposed",
    "mfmd_self_check_last_timestamp_seconds",
    "mfmd_self_check_errors",
    "mfmd_certificate_end_timestamp_seconds",
    "mfmd_ingest_files_total",
    "mfmd_ingest_rejected_total",
    "mfmd_ingest_skipped_total",
    "mfmd_ingest_bytes_total",
    "mfmd_ingest_pending_files",
    "mfmd_ingest_oldest_pending_timestamp_seconds",
    "mfmd_ingest_last_stored_timestamp_seconds",
    "mfmd_ingest_latency_seconds",
    "mfmd_ingest_paused",
    "mfmd_ingest_retries_total",
    "mfmd_refused_files",
    "mfmd_skipped_files",
    "mfmd_watcher_events_total",
    "mfmd_watcher_overflows_total",
    "mfmd_watcher_restarts_total",
    "mfmd_watcher_rescans_total",
    "mfmd_watcher_rescan_found_total",
    "mfmd_watcher_rescan_seconds",
    "mfmd_watcher_folder_present",
    "mfmd_watcher_mode_info",
    "mfmd_watcher_state_info",
    "mfmd_buffer_images",
    "mfmd_buffer_holdout_images",
    "mfmd_buffer_capacity_images",
    "mfmd_buffer_bytes",
    "mfmd_buffer_max_bytes",
    "mfmd_buffer_committed_images_total",
    "mfmd_buffer_evicted_images_total",
    "mfmd_buffer_commit_seconds",
    "mfmd_buffer_leases",
    "mfmd_buffer_last_committed_timestamp_seconds",
    "mfmd_disk_free_bytes",
    "mfmd_disk_reserve_bytes",
    "mfmd_round_runs_total",
    "mfmd_round_duration_seconds",
    "mfmd_round_in_progress",
    "mfmd_round_last_progress_timestamp_seconds",
    "mfmd_round_phase_info",
    "mfmd_round_step",
    "mfmd_round_step_target",
    "mfmd_round_memory_bytes",
    "mfmd_round_loss",
    "mfmd_round_pseudo_label_kept_ratio",
    "mfmd_round_images_per_second",
    "mfmd_round_shadow_images",
    "mfmd_round_shadow_agreement",
    "mfmd_round_last_number",
    "mfmd_round_last_attempt_timestamp_seconds",
    "mfmd_round_left_out_images",
    "mfmd_round_last_success_timestamp_seconds",
    "mfmd_round_consecutive_failures",
    "mfmd_schedule_frames_missing",
    "mfmd_schedule_held_info",
    "mfmd_schedule_used_seconds",
    "mfmd_schedule_budget_seconds",
    "mfmd_gate_verdicts_total",
    "mfmd_gate_score",
    "mfmd_gate_limit",
    "mfmd_gate_passed",
    "mfmd_gate_failures_total",
    "mfmd_ref_version",
    "mfmd_ref_since_timestamp_seconds",
    "mfmd_registry_versions",
    "mfmd_serving_moves_total",
    "mfmd_conditions_known",
    "mfmd_condition_current_info",
    "mfmd_camera_condition",
    "mfmd_condition_frames",
    "mfmd_condition_golden_frames",
    "mfmd_condition_best_version",
    "mfmd_paused",
    "mfmd_probation_active",
    "mfmd_probation_frames",
    "mfmd_probation_worse_frames",
    "mfmd_probation_cooldown_seconds",
    "mfmd_recalls_declined_total",
    "mfmd_drift_alarms_total",
    "mfmd_drift_state_info",
    "mfmd_drift_last_alarm_timestamp_seconds",
    "mfmd_drift_evidence_ratio",
    "mfmd_observed_frames",
    "mfmd_prediction_class_ratio",
    "mfmd_prediction_entropy",
    "mfmd_prediction_confidence",
    "mfmd_observed_last_timestamp_seconds",
    "mfmd_component_up",
    "mfmd_component_restarts_total",
    "mfmd_component_failures_total",
    "mfmd_component_last_tick_timestamp_seconds",
]


@pytest.fixture
def world(bench, layout):
    made = bench()
    child = ChildActivity(name="serve", running=True, restarts=2)
    made.metrics.registry.register(StateCollector(made.settings, made.buffer.catalog, lambda: [child]))
    return made


def _families(world):
    content, content_type = world.metrics.exposition("")
    assert content_type.startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(content.decode())}


def _observe(layout, classes: int) -> None:
    area = np.zeros(classes, np.float32)
    area[1] = 1.0
    with Observations.open(layout.observations, writable=True) as observations:
        observations.add(
            [Observation(1, 1, 1, time.time(), 0.7, 0.8, area, np.ones(3, np.float32), np.ones(2, np.float32))]
        )


def test_the_names_are_those_that_dashboards_and_alerts_use(world, layout, add_version):
    add_version()
    _observe(layout, len(world.settings.classes))
    text = world.metrics.exposition("")[0].decode()
    typed = set(re.findall(r"^# TYPE (mfmd_\S+)", text, re.M))
    assert typed == set(EXPECTED)


def test_every_metric_says_what_it_means_and_carries_its_unit(world):
    for family in _families(world).values():
        if not family.name.startswith("mfmd_"):
            continue
        assert len(family.documentation.split()) >= 3, family.name
        if "seconds" in family.documentation and family.type != "histogram":
            assert family.name.endswith("_seconds"), family.name


def test_no_series_is_labelled_by_what_grows_without_bound(world, layout, add_version):
    add_version()
    _observe(layout, len(world.settings.classes))
    labels = {label for family in _families(world).values() for sample in family.samples for label in sample.labels}
    assert labels <= {
        "outcome", "reason", "mode", "result", "cause", "decision", "gate", "ref", "class", "component", "part", "le",
        "mirror", "needs", "plane", "secret", "version", "python", "sha256", "state",
        "phase", "kind",
        "implementation", "major", "minor", "patchlevel",
    }  # fmt: skip
    assert not any(name.endswith("_created") for name in _families(world))


def test_moves_of_the_serving_ref_are_counted_by_cause(world, registry, add_version):
    first = add_version()
    second, third = (add_version(parent=first, promote=False) for _ in range(2))
    registry.promote(second, by="gate", reason="better", round=1)
    registry.promote(first, by="gate", reason="day is back", recalled=True)
    registry.promote(third, by="gate", reason="better", round=2)
    registry.roll_back(to=first, by="gate", reason="probation")
    samples = _families(world)["mfmd_serving_moves"].samples
    counts = {sample.labels["cause"]: sample.value for sample in samples}
    assert counts == {"round": 2, "recall": 1, "probation": 1, "operator": 1}


def test_series_start_at_zero(world):
    for name, labels in [
        ("mfmd_ingest_files_total", {"outcome": "stored"}),
        ("mfmd_ingest_rejected_total", {"reason": "too_many_pixels"}),
        ("mfmd_round_runs_total", {"result": "failed"}),
        ("mfmd_gate_verdicts_total", {"decision": "accepted"}),
        ("mfmd_gate_failures_total", {"gate": "vote_flip"}),
        ("mfmd_refused_files", {"reason": "truncated"}),
        ("mfmd_skipped_files", {"reason": "too_close"}),
        ("mfmd_component_failures_total", {"component": "ingest"}),
        ("mfmd_ref_version", {"ref": "serving"}),
        ("mfmd_buffer_images", {}),
    ]:
        assert world.metrics.registry.get_sample_value(name, labels) == 0, name


def test_storage_is_read_at_scrape_time(world, layout, registry, add_version, drop, write_image):
    add_version()
    add_version(parent=1)
    for number in range(3):
        write_image(drop / f"{number}.png", number)
    (drop / "bad.png").write_bytes(b"rubbish")
    world.until(lambda: world.counts.frames == 3 and world.counts.refused)
    world.buffer.lease(5)
    _observe(layout, len(world.settings.classes))
    value = world.metrics.registry.get_sample_value
    assert value("mfmd_buffer_images") == 3
    assert value("mfmd_buffer_committed_images_total") == 3
    assert value("mfmd_buffer_leases") == 1
    assert value("mfmd_buffer_bytes") > 0
    assert value("mfmd_buffer_last_committed_timestamp_seconds") == pytest.approx(time.time(), abs=60)
    assert value("mfmd_refused_files", {"reason": "not_an_image"}) == 1
    assert value("mfmd_ref_version", {"ref": "serving"}) == 2
    assert value("mfmd_ref_version", {"ref": "previous"}) == 1
    assert value("mfmd_ref_since_timestamp_seconds", {"ref": "serving"}) == registry.serving().since
    assert value("mfmd_prediction_entropy") == pytest.approx(0.7)
    assert value("mfmd_prediction_class_ratio", {"class": world.settings.classes[1].name}) == 1
    assert value("mfmd_component_up", {"component": "serve"}) == 1
    assert value("mfmd_component_restarts_total", {"component": "serve"}) == 2
    assert value("mfmd_disk_free_bytes") > 0


def test_the_last_verdict_is_shown_check_by_check(world, layout):
    folder = RoundStore(layout.rounds).create(
        RoundSpec(
            round=1, incumbent=1, released=1, train_frames=(1,), holdout_frames=(), settings={}, created=5.0,
            trigger="manual",
        )
    )  # fmt: skip
    folder.write_scores(RoundScores(status="completed", reason="step budget", steps=3, seconds=9.0))
    checks = [
        Check(name="source_miou", kind="veto", passed=False, value=0.07, limit=0.03, detail="fell"),
        Check(name="vote_flip", kind="vote", passed=True, value=0.5, limit=0.2, detail="won"),
    ]
    folder.write_verdict(Verdict(round=1, decision="rejected", reason="veto", checks=checks, at=77.0))
    folder.enter("rejected")
    value = world.metrics.registry.get_sample_value
    assert value("mfmd_gate_score", {"gate": "source_miou"}) == 0.07
    assert value("mfmd_gate_limit", {"gate": "source_miou"}) == 0.03
    assert value("mfmd_gate_passed", {"gate": "source_miou"}) == 0
    assert value("mfmd_gate_passed", {"gate": "vote_flip"}) == 1
    assert value("mfmd_round_last_success_timestamp_seconds") == 77
    assert value("mfmd_round_last_number") == 1


def test_a_damaged_part_does_not_take_the_others_with_it(world, registry, add_version):
    add_version()
    before = set(_families(world))
    (registry.root / "refs" / "serving").write_text("{")
    value = world.metrics.registry.get_sample_value
    assert set(_families(world)) == before, "an alert on an absent series would be silent"
    assert value("mfmd_ref_version", {"ref": "serving"}) == 1
    failures = value("mfmd_state_read_failures_total", {"part": "refs"})
    assert failures > 0 and value("mfmd_state_read_failures_total", {"part": "refs"}) == failures + 1
    assert value("mfmd_state_read_failures_total", {"part": "buffer"}) == 0
    assert value("mfmd_state_readable", {"part": "refs"}) == 0 and value("mfmd_state_readable", {"part": "buffer"}) == 1
    assert value("mfmd_buffer_images") == 0
    assert value("mfmd_disk_free_bytes") > 0


def test_openmetrics_is_spoken_too(world):
    content, content_type = world.metrics.exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert content.endswith(b"# EOF\n")


def test_the_secret_is_no_part_of_the_configuration_hash(make_settings):
    plain, secret = Metrics(make_settings()), Metrics(make_settings(control={"token": "abc"}))
    other = Metrics(make_settings(control={"token": "xyz"}))

    def digest(metrics: Metrics) -> str:
        return re.search(rb'sha256="(\w+)"', metrics.exposition("")[0]).group(1).decode()

    assert digest(secret) == digest(other)
    assert digest(plain) != digest(secret)
