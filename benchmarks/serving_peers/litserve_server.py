"""LitServe's side of benchmarks/serving.py: `PEER_PYTHON litserve_server.py PORT`; JSON, base64 in and out."""

import base64
import os
import sys
from collections.abc import Sequence
from typing import Any

import litserve
from work import BATCH, DELAY, Work


class Segmentation(litserve.LitAPI):  # type: ignore[misc]  # LitServe lives in an environment of its own
    """One worker process, LitServe's own batching."""

    def setup(self, device: str) -> None:
        """Load the version that serves."""
        self.work = Work()

    def decode_request(self, request: dict[str, Any]) -> bytes:
        """Return the image file of a request."""
        return base64.b64decode(request["image"])

    def batch(self, inputs: Sequence[bytes]) -> Sequence[bytes]:
        """Image files stay a list: they are no arrays to stack."""
        return inputs

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """Masks are a list already."""
        return output

    def predict(self, batch: Sequence[bytes]) -> list[bytes]:
        """PNG masks."""
        return self.work.segment(batch)

    def encode_response(self, output: bytes) -> dict[str, str]:
        """Return the mask as base64."""
        return {"mask": base64.b64encode(output).decode()}


if __name__ == "__main__":
    api = Segmentation(
        max_batch_size=int(os.environ[BATCH]), batch_timeout=float(os.environ[DELAY]) / 1000, api_path="/predict"
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="warning"
    )
