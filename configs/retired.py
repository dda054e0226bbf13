"""Settings that are gone, and what to use instead: an old file gets an answer, not only "unknown key".

A key that moved into a section below its old one (`round.seed` -> `round.advanced.seed`) needs no entry.
"""

RETIRED = {
    "host": "renamed: this section is now `recipe`",
    "network.hf_config": "removed: `mfmd import` records it in the version's manifest; delete the line",
    "network.hf_preprocessor": "removed: `mfmd import` records it in the version's manifest; delete the line",
    "recipe.detail_loss_weight": "removed: always 0.1, as published; delete the line",
    "serving.max_pixels": "removed: watch.max_pixels holds for the inference plane too; delete the line, or set that",
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
