"""Settings that are gone, and what to use instead: an old file gets an answer, not only "unknown key"."""

RETIRED = {
    "serving.quantize": (
        "removed: int8 is no longer a number format of the server; delete the line, set serving.precision: bf16 where "
        "the processor computes in it, or export a version (`mfmd export --format onnx`) to a runtime with int8"
    ),
    "watch.video_seconds": "moved: set videos.seconds, or videos.enabled: false to leave videos alone",
    "watch.max_video_bytes": "moved: the largest video is called videos.max_bytes now",
    "serving.repository_token": (
        "removed: a client of the inference plane can no longer load or unload a version; delete the line, and use "
        "`mfmd promote` and `mfmd rollback`"
    ),
}
"""Dotted name of the old setting -> one sentence."""
