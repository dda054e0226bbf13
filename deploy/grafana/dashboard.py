"""Write mfmd.json, the Grafana dashboard of a daemon and its inference planes, beside this file.

    python deploy/grafana/dashboard.py

Rows follow an image from the drop folder to the served answer. A test writes it again and compares, so edit this file.
"""

import json
from pathlib import Path
from string import ascii_uppercase
from typing import NamedTuple

from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable, Row
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
ONE = '{instance=~"$daemon"}'
"""Selects the daemon that is shown."""
SERVING = '{ref="serving",instance=~"$daemon"}'


class Graph(NamedTuple):
    """One panel: a curve for each query, by the legend of the curve."""

    title: str
    unit: str
    """Grafana's name of the unit."""
    queries: dict[str, str]
    width: int = 8


class Number(NamedTuple):
    """One panel with the newest value."""

    title: str
    unit: str
    query: str
    width: int = 4


def quantile(share: float, histogram: str, by: str = "instance", over: str = "$__rate_interval") -> str:
    """Return the query of a quantile (0-1) of a histogram, for each value of the labels `by`."""
    name, brace, labels = histogram.partition("{")
    return f"histogram_quantile({share}, sum by ({by}, le) (rate({name}_bucket{brace}{labels}[{over}])))"


ROWS: dict[str, list[Graph | Number]] = {
    "Now": [
        Number("Version that serves", "none", f"mfmd_ref_version{SERVING}"),
        Number("It serves since", "dateTimeFromNow", f"1000 * mfmd_ref_since_timestamp_seconds{SERVING}"),
        Number("Age of the newest frame", "s", f"time() - (mfmd_buffer_last_committed_timestamp_seconds{ONE} > 0)"),
        Number("New frames until a round", "none", f"mfmd_schedule_frames_missing{ONE}"),
        Number("Last verdict", "dateTimeFromNow", f"1000 * (mfmd_round_last_success_timestamp_seconds{ONE} > 0)"),
        Number("Known conditions", "none", f"mfmd_conditions_known{ONE}"),
    ],
    "Images": [
        Graph("Files by outcome", "cps", {"{{outcome}}": f"rate(mfmd_ingest_files_total{ONE}[$__rate_interval])"}),
        Graph("Waiting files", "none", {
            "waiting": f"mfmd_ingest_pending_files{ONE}",
            "retries an hour": f"increase(mfmd_ingest_retries_total{ONE}[1h])",
        }),
        Graph("Time to a durable commit", "s", {
            "{{instance}} p50": quantile(0.5, "mfmd_ingest_latency_seconds"),
            "{{instance}} p99": quantile(0.99, "mfmd_ingest_latency_seconds"),
        }),
        Graph("Refused and skipped files in the folder", "none", {
            "refused: {{reason}}": f"mfmd_refused_files{ONE} > 0",
            "skipped: {{reason}}": f"mfmd_skipped_files{ONE} > 0",
        }),
        Graph("Drop folder", "bool", {"{{state}}": f"mfmd_watcher_state_info{ONE}"}),
        Graph("Events and rescans", "cps", {
            "events": f"rate(mfmd_watcher_events_total{ONE}[$__rate_interval])",
            "found by a rescan only": f"rate(mfmd_watcher_rescan_found_total{ONE}[$__rate_interval])",
        }),
    ],
    "Buffer and disk": [
        Graph("Frames", "none", {
            "frames": f"mfmd_buffer_images{ONE}", "held out": f"mfmd_buffer_holdout_images{ONE}",
            "capacity": f"mfmd_buffer_capacity_images{ONE}",
        }),
        Graph("Frames an hour", "none", {
            "committed": f"increase(mfmd_buffer_committed_images_total{ONE}[1h])",
            "evicted": f"increase(mfmd_buffer_evicted_images_total{ONE}[1h])",
        }),
        Graph("Disk", "bytes", {
            "free": f"mfmd_disk_free_bytes{ONE}", "reserve": f"mfmd_disk_reserve_bytes{ONE}",
            "buffer": f"mfmd_buffer_bytes{ONE}",
        }),
        Graph("Ingest waits", "bool", {"paused": f"mfmd_ingest_paused{ONE}"}),
        Graph("Time of a commit", "s", {"{{instance}} p99": quantile(0.99, "mfmd_buffer_commit_seconds")}),
    ],
    "Stream": [
        Graph("Evidence of drift over its alarm", "percentunit", {"evidence": f"mfmd_drift_evidence_ratio{ONE}"}),
        Graph("Condition of each camera", "none", {"{{camera}}": f"mfmd_camera_condition{ONE}"}),
        Graph("Predicted classes", "percentunit", {"{{class}}": f"mfmd_prediction_class_ratio{ONE}"}),
        Graph("Entropy and confidence", "none", {
            "entropy (nats)": f"mfmd_prediction_entropy{ONE}", "confidence": f"mfmd_prediction_confidence{ONE}",
        }),
        Graph("Drift alarms", "none", {"alarms": f"mfmd_drift_alarms_total{ONE}"}),
        Graph("Best version of each condition", "none", {"{{condition}}": f"mfmd_condition_best_version{ONE}"}),
        Graph("Frames of each condition", "none", {
            "{{condition}}": f"mfmd_condition_frames{ONE}",
            "{{condition}} golden": f"mfmd_condition_golden_frames{ONE}",
        }),
    ],
    "Rounds and the gate": [
        Graph("Rounds in a day", "none", {"{{result}}": f"increase(mfmd_round_runs_total{ONE}[1d])"}),
        Graph("Phase of the round", "bool", {"{{phase}}": f"mfmd_round_phase_info{ONE}"}),
        Graph("Steps", "none", {"done": f"mfmd_round_step{ONE}", "target": f"mfmd_round_step_target{ONE}"}),
        Graph("Time since the round's last progress", "s", {
            "0: none runs":
                f"mfmd_round_in_progress{ONE} * (time() - mfmd_round_last_progress_timestamp_seconds{ONE})",
        }),
        Graph("Loss", "none", {"{{part}}": f"mfmd_round_loss{ONE}"}),
        Graph("Shares", "percentunit", {
            "confident pseudo-labels": f"mfmd_round_pseudo_label_kept_ratio{ONE}",
            "shadow agrees": f"mfmd_round_shadow_agreement{ONE}",
        }),
        Graph("Images a second", "ips", {"source and target": f"mfmd_round_images_per_second{ONE}"}),
        Graph("Memory of the round", "bytes", {"{{kind}}": f"mfmd_round_memory_bytes{ONE}"}),
        Graph("Duration of a round", "s", {
            "{{instance}} median of a day": quantile(0.5, "mfmd_round_duration_seconds", over="1d"),
        }),
        Graph("Checks of the last verdict", "none", {
            "{{gate}}": f"mfmd_gate_score{ONE}", "{{gate}} limit": f"mfmd_gate_limit{ONE}",
        }),
        Graph("Checks that failed in a day", "none", {"{{gate}}": f"increase(mfmd_gate_failures_total{ONE}[1d]) > 0"}),
        Graph("Frames that the last round left out", "none", {"{{reason}}": f"mfmd_round_left_out_images{ONE}"}),
        Graph("Device time of 24 hours", "s", {
            "used": f"mfmd_schedule_used_seconds{ONE}", "budget": f"mfmd_schedule_budget_seconds{ONE} > 0",
        }),
        Graph("Paused by an operator", "bool", {"paused": f"mfmd_paused{ONE}"}),
        Graph("Probation", "none", {
            "active": f"mfmd_probation_active{ONE}", "frames": f"mfmd_probation_frames{ONE}",
            "worse": f"mfmd_probation_worse_frames{ONE}",
        }),
    ],
    "Serving": [
        Graph("Version", "none", {
            "{{instance}} serves": "mfmd_serving_version", "{{instance}} should serve": "mfmd_serving_wanted_version",
            "{{ref}}": f"mfmd_ref_version{ONE}",
        }),
        Graph("Moves in a day by cause", "none", {"{{cause}}": f"increase(mfmd_serving_moves_total{ONE}[1d])"}),
        Graph("Requests by code", "reqps", {
            "{{instance}} {{code}}": "sum by (instance, code) (rate(mfmd_requests_total[$__rate_interval]))",
        }),
        Graph("Time to answer", "s", {
            "{{instance}} p50": quantile(0.5, "mfmd_request_seconds"),
            "{{instance}} p99": quantile(0.99, "mfmd_request_seconds"),
        }),
        Graph("Time to answer by version", "s", {
            "version {{version}} p99": quantile(0.99, 'mfmd_request_seconds{version!="0"}', "version"),
        }),
        Graph("Refused requests", "reqps", {
            "{{instance}} {{reason}}": "rate(mfmd_requests_refused_total[$__rate_interval]) > 0",
        }),
        Graph("Waiting images", "none", {
            "{{instance}}": "mfmd_queue_depth", "{{instance}} at most": "mfmd_queue_capacity_images",
        }),
        Graph("Time of a batch", "s", {"{{instance}} p99": quantile(0.99, "mfmd_batch_seconds")}),
        Graph("Time of a swap by phase", "s", {
            "{{phase}} p99 of a day": quantile(0.99, "mfmd_swap_seconds", "phase", "1d"),
        }),
        Graph("Failed swaps in an hour", "none", {"{{instance}}": 'increase(mfmd_swap_total{result="failed"}[1h])'}),
    ],
    "The daemon": [
        Graph("Children", "bool", {"{{component}}": f"mfmd_component_up{ONE}"}),
        Graph("Restarts of children an hour", "none", {
            "{{component}}": f"increase(mfmd_component_restarts_total{ONE}[1h])",
        }),
        Graph("Time since the last step of each part", "s", {
            "{{component}}": f"time() - (mfmd_component_last_tick_timestamp_seconds{ONE} > 0)",
        }),
        Graph("Failed steps an hour", "none", {"{{component}}": f"increase(mfmd_component_failures_total{ONE}[1h])"}),
        Graph("Memory", "bytes", {"{{job}} {{instance}}": 'process_resident_memory_bytes{job=~"mfmd.*"}'}),
        Graph("Damage", "none", {
            "errors of the self-check": f"mfmd_self_check_errors{ONE}",
            "unreadable: {{part}}": f"(1 - mfmd_state_readable{ONE}) > 0",
        }),
        Graph("Time since the self-check", "s", {
            "self-check": f"time() - (mfmd_self_check_last_timestamp_seconds{ONE} > 0)",
        }),
        Graph("Certificates end in", "s", {
            "{{plane}}": f"(mfmd_certificate_end_timestamp_seconds{ONE} > 0) - time()",
        }),
        Graph("Settings that wait for", "none", {"{{needs}}": f"mfmd_config_changed_settings{ONE}"}),
        Graph("Messages and exports an hour", "none", {
            "messages {{result}}": f"increase(mfmd_notifications_total{ONE}[1h])",
            "{{mirror}} {{result}}": f"increase(mfmd_publish_total{ONE}[1h])",
        }),
        Graph("Masks", "none", {
            "{{result}} an hour": f"increase(mfmd_masks_total{ONE}[1h])", "waiting": f"mfmd_masks_pending{ONE}",
        }),
    ],
}  # fmt: skip


def panel(item: Graph | Number) -> TimeSeries | Stat:
    """Return the panel of one item."""
    queries = {"": item.query} if isinstance(item, Number) else item.queries
    built: TimeSeries | Stat = Stat() if isinstance(item, Number) else TimeSeries()
    built = (
        built.title(item.title)
        .unit(item.unit)
        .datasource(SOURCE)
        .span(item.width)
        .height(4 if isinstance(item, Number) else 8)
    )
    for letter, (legend, expression) in zip(ascii_uppercase, queries.items(), strict=False):
        built = built.with_target(Dataquery().ref_id(letter).expr(expression).legend_format(legend))
    return built


def dashboard() -> Dashboard:
    """Return the dashboard: a row for each part of the way."""
    board = (
        Dashboard("mfmd").uid("mfmd").tags(["mfmd"]).refresh("30s").time("now-24h", "now").readonly()
        .with_variable(DatasourceVariable("source").type("prometheus").label("Prometheus"))
        .with_variable(
            QueryVariable("daemon").label("Daemon").datasource(SOURCE).refresh(2)
            .query("label_values(mfmd_start_timestamp_seconds, instance)")
        )
    )  # fmt: skip
    for title, items in ROWS.items():
        board = board.with_row(Row(title))
        for item in items:
            board = board.with_panel(panel(item))
    return board


def main() -> None:
    """Write the dashboard."""
    text = json.dumps(dashboard().build(), cls=JSONEncoder, indent=1, sort_keys=True)
    Path(__file__).with_name("mfmd.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
