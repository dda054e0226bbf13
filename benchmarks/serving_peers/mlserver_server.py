"""MLServer's side of benchmarks/serving.py: `PEER_PYTHON mlserver_server.py PORT`; OIP, base64 in JSON."""

import asyncio
import base64
import os
import sys

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from work import BATCH, DELAY, Work


class Segmentation(MLModel):  # type: ignore[misc]  # MLServer lives in an environment of its own
    """One worker process, MLServer's adaptive batching."""

    async def load(self) -> bool:
        """Load the version that serves."""
        self.work = Work()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """PNG masks of JPEG images, both as base64."""
        masks = self.work.segment([base64.b64decode(image) for image in payload.inputs[0].data])
        encoded = [base64.b64encode(mask).decode() for mask in masks]
        output = ResponseOutput(name="masks", shape=[len(encoded), 1], datatype="BYTES", data=encoded)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main() -> None:
    """Serve until a signal."""
    from mlserver_server import Segmentation as Importable  # the worker process imports it by its module's name

    port = int(sys.argv[1])
    settings = Settings(
        host="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_port=port + 2, parallel_workers=1, debug=False
    )
    model = ModelSettings(
        name="segmentation",
        implementation=Importable,
        max_batch_size=int(os.environ[BATCH]),
        max_batch_time=float(os.environ[DELAY]) / 1000,
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main())
