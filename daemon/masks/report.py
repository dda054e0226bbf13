"""`run/masks.json`: how far the masks process is; it has no HTTP server, so the control plane shows it."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class MaskReport(BaseModel):
    """What the process has done since it started."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    written: int = 0
    """Masks written since the start."""
    refused: int = 0
    """Files that are no usable image."""
    failed: int = 0
    """Masks that could not be made or written."""
    pending: int = 0
    """Images that wait for their mask."""
    active: bool = False
    """Whether this process writes; another one may hold the folder."""
    folder_present: bool = False
    """Whether the drop folder can be listed."""
    last_written: float = 0.0
    """Unix time of the newest mask (seconds); 0: none since the start."""


def read_report(path: Path) -> MaskReport | None:
    """Read `run/masks.json`; None when there is none or it cannot be read."""
    try:
        return MaskReport.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
