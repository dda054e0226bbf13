"""`mfmd.json` beside an exported model: what a program needs to know to use it."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

DESCRIPTION = "mfmd.json"


class ExportDescription(BaseModel):
    """The version, its classes, and the pixels that the model takes."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    version: int
    """Number in the registry."""
    weights: str = ""
    """Hex SHA-256 of the version's weights file in the registry."""
    classes: tuple[str, ...]
    """Names by class index: channel k of the logits."""
    colors: tuple[tuple[int, int, int], ...]
    """RGB of each class."""
    size: tuple[int, int]
    """Height and width that images were fitted to in training and serving (pixels)."""
    mean: tuple[float, float, float]
    """The network takes (RGB / 255 - mean) / std; a Hugging Face model what its preprocessor_config.json says."""
    std: tuple[float, float, float]
    """See `mean`."""
    free_dimensions: tuple[str, ...]
    """Dimensions of the images `[batch, 3, height, width]` that may differ from those of the example at export."""


def read_description(folder: Path) -> ExportDescription | None:
    """What an exported folder says of itself; none where there is nothing, or nothing that can be understood."""
    try:
        return ExportDescription.model_validate_json((folder / DESCRIPTION).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
