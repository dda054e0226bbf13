"""Copies of the serving version for other servers: a Triton model repository, a Hugging Face directory.

    TRITON/mfmd/{7/{model.onnx, mfmd.json}, config.pbtxt}                 config.pbtxt names the one version to serve
    HUGGINGFACE/{7/{config.json, model.safetensors, ...}, current -> 7}   `current` is what to load

A version's folder appears complete or not at all (`mfmd export` ensures it). The name is replaced after that, in one
step, and folders of old versions are removed last. So a reader never finds half a version, after a kill at any moment.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from configs.buffer import FitMode, Resample
from storage import durable
from storage.errors import StorageError
from storage.registry.files import numbers

MODEL = "mfmd"
"""Name of the model in a Triton repository."""
CONFIG = "config.pbtxt"
CURRENT = "current"
VERSION_KEY = "mfmd_version"
"""Parameter in `config.pbtxt` that says that mfmd wrote it."""
DESCRIPTION = "mfmd.json"
"""File beside an exported model: what a program must know to use it."""


class ExportDescription(BaseModel):
    """The version, its classes, and the pixels that the model expects."""

    model_config = ConfigDict(frozen=True)

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
    fit: FitMode = "aspect"
    """How: aspect keeps the aspect of an image and pads below and to the right; squash scales each side by itself."""
    resample: Resample = "bilinear"
    """Filter that scales images; all are antialiased when they shrink, but nearest."""
    mean: tuple[float, float, float]
    """The network expects (RGB / 255 - mean) / std; a Hugging Face model what its preprocessor_config.json says."""
    std: tuple[float, float, float]
    """See `mean`."""
    free_dimensions: tuple[str, ...]
    """Dimensions of the images `[batch, 3, height, width]` that may differ from those of the example at export."""


def read_description(folder: Path) -> ExportDescription | None:
    """Return the description in an exported folder; None when it is missing or invalid."""
    try:
        return ExportDescription.model_validate_json((folder / DESCRIPTION).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


class Mirror(ABC):
    """One folder of copies, with one writer."""

    name: ClassVar[str]
    """Its field in `publish`."""
    format: ClassVar[str]
    """Format of `mfmd export` that it holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Folder of the versions."""

    def place(self, version: int) -> Path:
        """Return the folder of a version."""
        return self.folder / str(version)

    def holds(self, version: int, weights: str) -> bool:
        """Return whether the copy of a version exists, made of the weights with this SHA-256."""
        found = read_description(self.place(version))
        return found is not None and (found.version, found.weights) == (version, weights)

    def prepare(self, version: int) -> None:
        """Make room for the export of a version: remove leftovers of a killed one, and a version of other weights.

        Raises StorageError when that one is in use: it is another registry's.
        """
        durable.make_directory(self.folder, shared=True)
        durable.remove_partials(self.folder, shared=True)
        place = self.place(version)
        if not place.exists():
            return
        if not place.is_dir() or read_description(place) is None:
            raise self._foreign(place)
        if self.current() == version:
            raise StorageError(
                f"{place}: in use, and made from other weights than this registry's version {version}; give "
                f"publish.{self.name} a folder of its own"
            )
        durable.retire_directory(place)

    @abstractmethod
    def current(self) -> int | None:
        """Return the version that readers get; None before the first."""

    def leads_to(self, version: int) -> bool:
        """Return whether readers get a version in the form that `point` would write now."""
        return self.current() == version

    @abstractmethod
    def point(self, version: int) -> None:
        """Point readers to a version that it holds, in one step."""

    def prune(self, keep: Collection[int | None]) -> None:
        """Remove copies of versions other than `keep` and the current one, and leftovers. Not while an export runs."""
        durable.remove_partials(self.folder, shared=True)
        for version in numbers(self.folder):
            if version not in {*keep, self.current()} and read_description(self.place(version)) is not None:
                durable.retire_directory(self.place(version))

    def _foreign(self, path: Path) -> StorageError:
        return StorageError(f"{path}: not made by mfmd; move it elsewhere, or give publish.{self.name} a new folder")

    def _description(self, version: int) -> ExportDescription:
        found = read_description(self.place(version))
        if found is None:
            raise StorageError(f"{self.place(version)}: no copy of version {version}")
        return found


class TritonMirror(Mirror):
    """A model of a Triton model repository. Triton ignores folders whose names are not numbers: unfinished ones."""

    name = "triton"
    format = "onnx"

    def __init__(self, repository: Path, max_batch: int) -> None:
        """Configure it; `max_batch` is the most images that Triton may put into one batch."""
        super().__init__(repository / MODEL)
        self._max_batch = max_batch

    def current(self) -> int | None:
        """Return the version in the version policy."""
        try:
            text = self._text()
        except FileNotFoundError:
            return None
        number = text.partition("versions: [ ")[2].partition(" ]")[0]
        return int(number) if number.isdigit() else None

    def leads_to(self, version: int) -> bool:
        """Return whether `config.pbtxt` is up to date; it also holds settings."""
        return self.current() == version and self._text() == self._config(version)

    def point(self, version: int) -> None:
        """Replace `config.pbtxt`. The policy names one version, because a rollback is not the newest number."""
        path = self.folder / CONFIG
        if os.path.lexists(path) and (path.is_symlink() or VERSION_KEY not in self._text()):
            raise self._foreign(path)
        durable.write_text(path, self._config(version), shared=True)

    def _text(self) -> str:
        """Return the content of the file; unreadable text is not mfmd's, and no reason to fail."""
        return (self.folder / CONFIG).read_text(encoding="utf-8", errors="replace")

    def _config(self, version: int) -> str:
        about = self._description(version)
        height, width = (
            -1 if name in about.free_dimensions else side
            for name, side in zip(("height", "width"), about.size, strict=True)
        )
        return f"""\
name: "{MODEL}"
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: {self._max_batch}
version_policy {{ specific {{ versions: [ {about.version} ] }} }}
input [ {{ name: "images" data_type: TYPE_FP32 dims: [ 3, {height}, {width} ] }} ]
output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ {len(about.classes)}, {height}, {width} ] }} ]
dynamic_batching {{ }}
parameters {{ key: "{VERSION_KEY}" value {{ string_value: "{about.version}" }} }}
parameters {{ key: "mfmd_weights_sha256" value {{ string_value: "{about.weights}" }} }}
"""


class HuggingFaceMirror(Mirror):
    """A folder of Hugging Face directories and a symbolic link: a reader who resolves it once keeps one version."""

    name = "huggingface"
    format = "huggingface"

    def current(self) -> int | None:
        """Return the target of `current`."""
        link = self.folder / CURRENT
        target = str(link.readlink()) if link.is_symlink() else ""
        return int(target) if target.isdigit() else None

    def point(self, version: int) -> None:
        """Point `current` to the version."""
        self._description(version)
        link = self.folder / CURRENT
        if os.path.lexists(link) and self.current() is None:
            raise self._foreign(link)
        durable.point_link(link, str(version))
