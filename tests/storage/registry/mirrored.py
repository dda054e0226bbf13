"""Copies of versions as `mfmd export` publishes them, made by hand: files that say which version they are of."""

import hashlib

from storage import durable
from storage.registry.mirrors import DESCRIPTION, ExportDescription, Mirror

FILES = ("model.onnx", "model.onnx.data", "config.json")


def weights_of(version: int) -> str:
    """The SHA-256 that the weights of a version would have."""
    return hashlib.sha256(f"{version}".encode()).hexdigest()


def export(mirror: Mirror, version: int, weights: str | None = None) -> None:
    """Bring a copy to its place as an export does: complete or not at all."""
    mirror.prepare(version)
    temporary = mirror.place(version).with_name(f".{version}.0000{durable.PARTIAL}")
    temporary.mkdir()
    for name in FILES:
        (temporary / name).write_text(f"{version}")
    about = ExportDescription(
        version=version,
        weights=weights or weights_of(version),
        classes=("road", "sky", "tree"),
        colors=((1, 2, 3),) * 3,
        size=(64, 96),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        free_dimensions=("batch", "height", "width") if version % 2 else ("batch",),
    )
    durable.write_record(temporary / DESCRIPTION, about)
    durable.publish_directory(temporary, mirror.place(version))


def what_a_reader_finds(mirror: Mirror) -> int | None:
    """The version that the mirror leads to, whose files are all there and of that version; none before the first."""
    version = mirror.current()
    if version is None:
        return None
    folder = mirror.folder / "current" if (mirror.folder / "current").is_symlink() else mirror.place(version)
    assert {(folder / name).read_text() for name in FILES} == {f"{version}"}
    assert mirror.holds(version, weights_of(version))
    return version
