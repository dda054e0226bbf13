import numpy as np
import pytest

from storage.errors import CorruptBuffer, StorageError
from storage.layout import StateLayout
from storage.media.images import fit_frame, fit_label
from storage.source.labelled import LabelledSet
from storage.source.labelled_import import import_labelled


def expected(number: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(number)
    pixels = random.integers(0, 256, (60, 80, 3), np.uint8)
    label = random.integers(0, 3, (60, 80)).astype(np.uint8)
    label[0] = 255
    return fit_frame(pixels, 64, 96).pixels, fit_label(label, 64, 96, 255)


def test_nothing_imported_is_said(layout: StateLayout):
    assert not LabelledSet.exists(layout)
    with pytest.raises(StorageError, match="no labelled source imported yet"):
        LabelledSet.open(layout)


def test_images_labels_and_crops_come_back(layout: StateLayout, source):
    import_labelled(source(5), layout)
    assert LabelledSet.exists(layout)
    found = LabelledSet.open(layout)
    assert len(found) == 5 and found.names == tuple(f"{number:03d}.png" for number in range(5))
    assert (found.height, found.width, found.ignore_index) == (64, 96, 255)
    for number in range(5):
        pixels, label = expected(number)
        assert np.array_equal(found.images.read(number), pixels)
        assert np.array_equal(found.labels.read(number), label)
        assert found.valid[number] == (64, 85)
        assert (found.labels.read(number)[:, 85:] == 255).all()
        assert np.array_equal(found.images.read_crop(number, 5, 40, 33, 50), pixels[5:38, 40:90])
        assert np.array_equal(found.labels.read_crop(number, 5, 40, 33, 50), label[5:38, 40:90])
        counts = [int((label == index).sum()) for index in range(3)]
        assert found.class_pixels[number].tolist() == counts
    assert found.class_pixels.dtype == np.int64


def test_another_fit_imports_the_images_again(layout: StateLayout, source):
    settings = source(1)
    import_labelled(settings, layout)
    advanced = settings.buffer.advanced.model_copy(update={"fit": "squash"})
    buffer = settings.buffer.model_copy(update={"advanced": advanced})
    found = import_labelled(settings.model_copy(update={"buffer": buffer}), layout)
    assert found.valid[0] == (64, 96)
    assert not (found.labels.read(0)[2:, 85:] == 255).any()


def test_a_lost_file_is_an_error_not_a_black_image(layout: StateLayout, source):
    found = import_labelled(source(3), layout)
    (next(layout.source.glob("*/images")) / "c.1.0.0.0").unlink()
    (next(layout.source.glob("*/labels")) / "c.1.0.0").write_bytes(b"")
    assert found.images.read(0).any()
    with pytest.raises(CorruptBuffer, match="missing"):
        found.images.read(1)
    with pytest.raises(CorruptBuffer, match="damaged"):
        found.labels.read(1)


def test_damaged_index_files_are_named(layout: StateLayout, source):
    import_labelled(source(3), layout)
    index = next(layout.source.glob("*/index.json"))
    index.write_text("{}")
    with pytest.raises(StorageError, match=r"index\.json: not a SourceIndex: .*; remove .*/source, then"):
        LabelledSet.open(layout)
    index.unlink()
    with pytest.raises(StorageError, match=r"index\.json: missing; remove .*/source, then"):
        LabelledSet.open(layout)
    (layout.source / "current.json").write_text("?")
    with pytest.raises(StorageError, match=r"current\.json: not a CurrentSource: .*; remove .*/source, then"):
        LabelledSet.exists(layout)
