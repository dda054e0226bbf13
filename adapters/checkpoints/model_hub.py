"""Fetch models by hub id through huggingface_hub: config and safetensors only, from its cache when offline."""

import re
from pathlib import Path

from adapters.errors import UnsupportedModel

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILE_ENDINGS = (".safetensors", ".bin", ".ckpt", ".onnx", ".pickle", ".pkl", ".pt", ".pth")
_WANTED = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
"""Files to fetch: no pickles and no Python, because those run code."""


def is_hub_id(source: str) -> bool:
    """Return whether `source` can be a hub id, `organisation/name`, and not a file."""
    return _HUB_ID.fullmatch(source) is not None and not source.endswith(_FILE_ENDINGS)


def fetch(hub_id: str) -> Path:
    """Return the local directory of a hub model; its name is the commit. Raises UnsupportedModel if unavailable."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_WANTED))
    except LocalEntryNotFoundError as error:
        raise UnsupportedModel(
            f"{hub_id}: no such directory here, and the hub cannot be reached to look for a model of that name; "
            "give a local directory, or connect (HF_HUB_OFFLINE must not be set) and try again"
        ) from error
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError) as error:
        raise UnsupportedModel(
            f"{hub_id}: no such directory here, and the hub gives no model of that name ({type(error).__name__}); "
            "check the id, sign in with `hf auth login` if the model is gated, or give a local directory"
        ) from error
