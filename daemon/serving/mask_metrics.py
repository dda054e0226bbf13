"""Prometheus metrics of masks that are written as files."""

from daemon.runtime.metric_table import MetricTable, counter, gauge


class MaskMetrics(MetricTable):
    """All of them, in the registry of the inference plane."""

    results = counter(
        "mfmd_masks",
        "Images of the drop folder that a mask was wanted for, by result: written, refused (no usable image), "
        "failed (a mask that could not be made or written)",
        result=("written", "refused", "failed"),
    )
    pending = gauge("mfmd_masks_pending", "Images that wait for their mask")
    active = gauge("mfmd_masks_active", "1 while this server writes masks; 0: off, stopped, or another does")
    folder_present = gauge("mfmd_masks_folder_present", "1 while the writer of masks can list the drop folder")
    last_written = gauge(
        "mfmd_masks_last_written_timestamp_seconds",
        "Unix time when the newest mask was written; 0: none since the start",
    )
