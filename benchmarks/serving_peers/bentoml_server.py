"""BentoML's side of benchmarks/serving.py: `PEER_PYTHON bentoml_server.py PORT`; JSON with base64 images in and out."""

import base64
import os
import sys
from pathlib import Path

import bentoml
from work import BATCH, Work


@bentoml.service(workers=1, traffic={"timeout": 120})  # type: ignore[untyped-decorator,unused-ignore]
class Segmentation:
    """One worker process, BentoML's adaptive batching."""

    def __init__(self) -> None:
        self.work = Work()

    # Below about the time of a batch BentoML answers 503 to what it expects to be late; the delay is not a wish for it.
    @bentoml.api(batchable=True, max_batch_size=int(os.environ[BATCH]), max_latency_ms=60_000)  # type: ignore[untyped-decorator,unused-ignore]
    def segment(self, images: list[str]) -> list[str]:
        """PNG masks of JPEG images, both as base64."""
        masks = self.work.segment([base64.b64decode(image) for image in images])
        return [base64.b64encode(mask).decode() for mask in masks]


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    command = ["-m", "bentoml", "serve", "bentoml_server:Segmentation", "--working-dir", str(here)]
    arguments = [*command, "--host", "127.0.0.1", "--port", sys.argv[1]]
    os.execv(sys.executable, [sys.executable, *arguments])
