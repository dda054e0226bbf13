"""Label files: exact values whatever the file's kind, each with the meaning that the configuration gives it."""

import io
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from configs.buffer import SourceSettings
from storage.errors import RefusedImage
from storage.media.bounded import DecodeLimits
from storage.media.essentials import ADAM7
from storage.media.images import decode_image
from storage.source.label_file import Label, UnknownValue, read_label
from storage.source.label_map import LabelMap

CLASSES = [("road", (128, 64, 128)), ("sky", (70, 130, 180)), ("tree", (107, 142, 35))]
INDICES = np.array([[0, 1, 2], [255, 2, 1]], np.uint8)

LIMITS = DecodeLimits(max_bytes=100_000, max_pixels=10_000, seconds=2.0)
LARGE = DecodeLimits(max_bytes=10**8, max_pixels=10**8, seconds=10.0)

Read = Callable[..., Label]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def of(
        data: Image.Image | np.ndarray | bytes, ending: str = "png", classes=CLASSES, limits=LIMITS, **source: object
    ) -> Label:
        path = tmp_path / f"label.{ending}"
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            (data if isinstance(data, Image.Image) else Image.fromarray(data)).save(path)
        settings = SourceSettings.model_validate({"images": "i", "labels": "l", **source})
        return read_label(path, LabelMap.of(settings, classes), limits)

    return of


def paletted(indices: np.ndarray, colors: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette([channel for color in colors for channel in color])
    return image


def png(width: int, bits: int, color: int, row: bytes) -> bytes:
    """A PNG of one row, written by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, 1, bits, color, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "tif", "tiff", "pgm"])
def test_indices_are_exact_in_every_format(read: Read, ending: str):
    assert read(INDICES, ending).classes.tolist() == INDICES.tolist()


def test_indices_are_exact_in_every_mode(read: Read):
    shuffled = paletted(INDICES, [(255 - i, i, 7) for i in range(256)])
    for format in ("index", "palette"):
        for ending in ("png", "bmp", "tif"):
            assert read(shuffled, ending, label_format=format).classes.tolist() == INDICES.tolist(), ending
    for kind, ending in ((np.uint16, "png"), (np.int32, "tif"), (np.uint16, "pgm")):
        assert read(INDICES.astype(kind), ending).classes.tolist() == INDICES.tolist()
    assert read(png(4, 4, 0, bytes([0x01, 0x20]))).classes.tolist() == [[0, 1, 2, 0]], "not scaled up to 0-255"
    assert read(png(4, 2, 0, bytes([0b00011000]))).classes.tolist() == [[0, 1, 2, 0]]
    assert read(png(3, 1, 0, bytes([0b01000000]))).classes.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(("bits", "row"), [(8, b"\0\1\1\0"), (4, b"\x01\x10\0\0"), (1, b"\x60\0\0\0")])
def test_indices_of_a_bmp_whose_palette_is_black_and_white(read: Read, bits: int, row: bytes):
    head = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 66, 0, 62, 40, 4, 1, 1, bits, 0, 0, 0, 0, 2, 0)
    assert read(head + b"\0\0\0\0\xff\xff\xff\0" + row, "bmp").classes.tolist() == [[0, 1, 1, 0]]


def test_grey_in_a_gif_is_grey_whatever_the_order_of_its_palette(read: Read):
    """A GIF has no grey pixels: black and white are palette entries in any order (DRIVE's manual labels)."""
    masks = {0: "road", 255: "sky"}
    for colors in ([(0, 0, 0), (255, 255, 255)], [(255, 255, 255), (0, 0, 0)]):
        indices = np.array([[0, 1, 1]], np.uint8)
        found = read(paletted(indices, colors), "gif", label_map=masks)
        white = colors.index((255, 255, 255))
        assert (found.classes == 1).tolist() == (indices == white).tolist()


@pytest.mark.parametrize("keys", [("128,64,128", "0,0,0"), ("#804080", "#000000"), (" 128, 64 ,128", "0, 0, 0")])
def test_colours_are_classes_and_the_map_adds_others(read: Read, keys: tuple[str, str]):
    colors = np.array([[(128, 64, 128), (107, 142, 35), (0, 0, 0)]], np.uint8)
    read_as = {"label_format": "rgb", "label_map": {keys[1]: "ignore"}}
    for ending in ("png", "bmp", "ppm", "tif"):
        assert read(colors, ending, **read_as).classes.tolist() == [[0, 2, 255]]
    assert read(Image.fromarray(colors).convert("P", palette=Image.Palette.ADAPTIVE), **read_as).classes[0, 1] == 2
    assert read(colors, label_format="rgb", label_map={keys[0]: 1, keys[1]: None}).classes.tolist() == [[1, 2, 255]]
    opaque = Image.fromarray(colors).convert("RGBA")
    assert read(opaque, **read_as).classes.tolist() == [[0, 2, 255]]
    opaque.putalpha(254)
    with pytest.raises(RefusedImage, match="transparent pixels"):
        read(opaque, **read_as)


def test_a_colour_off_by_one_is_named_with_its_place_and_the_nearest(read: Read):
    colors = np.array([[(128, 64, 128)] * 3, [(128, 64, 128), (70, 131, 180), (0, 0, 0)]], np.uint8)
    with pytest.raises(UnknownValue, match=r"70,131,180 at row 1, column 1 .* 70,130,180 \(sky\)") as caught:
        read(colors, label_format="rgb")
    assert sum(caught.value.values.values()) == 6


@pytest.mark.parametrize(
    ("entries", "values", "expected"),
    [
        ({0: "road", 255: "sky"}, [0, 255], [0, 1]),
        ({"255": 1}, [0, 2, 255], [0, 2, 1]),
        ({1: "ignore", 7: "sky"}, [0, 1, 7, 255], [0, 255, 1, 255]),
        ({0: None, 1: 0, 2: 1, 3: 2}, [0, 1, 2, 3], [255, 0, 1, 2]),
        ({9: "road", 0: "road"}, [9, 0, 1], [0, 0, 1]),
    ],
)
def test_the_map_gives_a_class_its_values(read: Read, entries: dict, values: list[int], expected: list[int]):
    assert read(np.array([values], np.uint8), label_map=entries).classes.tolist() == [expected]


def test_a_class_in_the_map_has_those_values_alone(read: Read):
    """A mask of 0 and 255 with a stray 1 in it is not silently read as if 1 were meant."""
    with pytest.raises(UnknownValue, match=r"label value 1 at row 0, column 1 .* nearest .* 0 \(road\)"):
        read(np.array([[0, 1, 255]], np.uint8), classes=CLASSES[:2], label_map={0: "road", 255: "sky"})


def test_cityscapes_ids_find_classes_by_name(read: Read):
    ids = np.array([[7, 23, 8, 0, 33, 34]], np.uint8)
    assert read(ids, label_format="cityscapes_ids").classes.tolist() == [[0, 1, 255, 255, 255, 255]]
    with pytest.raises(UnknownValue, match="label value 35"):
        read(np.array([[35]], np.uint8), label_format="cityscapes_ids")


SYNTHIA_CLASSES = [("road", 3), ("sky", 1), ("bicycle", 11), ("wall", 21), ("person", 10)]
"""Classes in any order, and the ids that SYNTHIA's readme gives them."""


@pytest.mark.parametrize("id_bits", [8, 16])
def test_synthia_ids_stand_in_the_first_of_three_channels(read: Read, id_bits: int):
    classes = [(name, (index, 0, 0)) for index, (name, _) in enumerate(SYNTHIA_CLASSES)]
    ids = [*(number for _, number in SYNTHIA_CLASSES), 0, 22, 255]
    row = b"".join(struct.pack(">HHH", number, 256 + place, 7) for place, number in enumerate(ids))
    data = png(len(ids), 16, 2, row) if id_bits == 16 else png(len(ids), 8, 0, bytes(ids))
    found = read(data, classes=classes, label_format="synthia_ids")
    assert found.classes.tolist() == [[0, 1, 2, 3, 4, 255, 255, 255]]
    with pytest.raises(UnknownValue, match="label value 259 at row 0, column 0"):  # 3 in its low byte
        read(png(1, 16, 2, struct.pack(">HHH", 259, 0, 0)), label_format="synthia_ids")


def test_colours_are_no_synthia_ids_and_those_are_nothing_else(read: Read):
    with pytest.raises(RefusedImage, match=r"RGB image; source\.label_format: rgb"):
        read(np.zeros((1, 1, 3), np.uint8), label_format="synthia_ids")
    for other in ("index", "rgb", "cityscapes_ids"):
        with pytest.raises(RefusedImage, match=r"16 bits; source\.label_format: synthia_ids"):
            read(png(1, 16, 2, struct.pack(">HHH", 3, 0, 0)), label_format=other)


def test_ade20k_ignores_0_and_starts_at_1(read: Read):
    classes = [(str(number), (number, 0, 0)) for number in range(150)]
    found = read(np.array([[0, 1, 150]], np.uint8), classes=classes, label_format="ade20k")
    assert found.classes.tolist() == [[255, 0, 149]]
    with pytest.raises(UnknownValue, match="label value 151"):
        read(np.array([[151]], np.uint8), classes=classes, label_format="ade20k")


@pytest.mark.parametrize(
    ("image", "ending", "source", "words"),
    [
        (np.array([[0, 0], [0, 7]], np.uint8), "png", {}, r"label value 7 at row 1, column 1 .* nearest .* 2 \(tree\)"),
        (np.array([[300]], np.uint16), "png", {}, "label value 300"),
        (np.array([[-1]], np.int32), "tif", {}, r"label value -1 .* 0 \(road\)"),
        (np.zeros((2, 2, 3), np.uint8), "png", {}, "a RGB image; source.label_format: rgb"),
        (Image.new("LA", (2, 2)), "png", {}, "a LA image"),
        (Image.new("F", (2, 2)), "tif", {}, "a F image"),
        (np.zeros((2, 2), np.uint8), "png", {"label_format": "palette"}, "has no palette"),
        (b"P5 2 1 20\n\x00\x07", "pgm", {}, "grey of 0 to 20"),
        (png(1, 16, 2, bytes(6)), "png", {"label_format": "rgb"}, "three channels of 16 bits"),
        (png(1, 16, 6, bytes(8)), "png", {"label_format": "rgb"}, "RGBA;16B"),
        (np.zeros((101, 101), np.uint8), "png", {}, "the limit is 10000"),
        (b"", "png", {}, "empty"),
        (bytes(100_001), "png", {}, "100001 bytes; the limit is 100000"),
        (b"text", "png", {}, "not an image"),
    ],
)
def test_what_has_no_exact_meaning_is_refused(read: Read, image, ending: str, source: dict, words: str):
    with pytest.raises(RefusedImage, match=words) as caught:
        read(image, ending, **source)
    assert "label." in str(caught.value)


def test_metadata_of_a_label_refuses_no_label(read: Read):
    whole = png(3, 8, 0, bytes([0, 1, 2]))
    text = b"zTXt" + b"k\0\0" + zlib.compress(b"a" * 3_000_000)
    body = struct.pack(">I", len(text) - 4) + text + b"bad!"
    assert read(whole[:33] + body + whole[33:]).classes.tolist() == [[0, 1, 2]]


def test_signed_bytes_are_no_ignored_pixels(read: Read):
    file = io.BytesIO()
    tifffile.imwrite(file, INDICES.view(np.int8))
    with pytest.raises(RefusedImage, match="signed") as caught:
        read(file.getvalue(), "tif")
    assert caught.value.reason == "bad_label"


def test_lossy_and_cut_off_labels_are_refused(read: Read, tmp_path: Path):
    Image.fromarray(INDICES).save(tmp_path / "label.jpeg")
    Image.fromarray(INDICES).save(tmp_path / "in.tif", compression="jpeg")
    for name, words in (("label.jpeg", "JPEG and others with lossy"), ("in.tif", "lossy compression")):
        with pytest.raises(RefusedImage, match=words):
            read((tmp_path / name).read_bytes())
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (50, 50)).astype(np.uint8)).save(tmp_path / "cut.png")
    with pytest.raises(RefusedImage, match="damaged or cut off"):
        read((tmp_path / "cut.png").read_bytes()[:-200])
    frames = [paletted(INDICES, [(i, 0, 0) for i in range(256)]) for _ in range(2)]
    frames[1].putpixel((0, 0), 2)
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(RefusedImage, match="several pages"):
        read((tmp_path / "two.gif").read_bytes())


def test_a_label_has_the_budget_of_an_image(read: Read, monkeypatch: pytest.MonkeyPatch):
    for name in ("MEMORY", "BYTES_A_PIXEL", "BYTES_A_BYTE"):
        monkeypatch.setattr(f"storage.media.bounded.{name}", 0)
    with pytest.raises(RefusedImage, match=r"label\.pgm: decoding it takes more than 0 bytes") as caught:
        read(b"P5 9000 9000 255\n" + bytes(81_000_000), "pgm", limits=LARGE)
    assert caught.value.reason == "too_costly"
    monkeypatch.undo()
    assert read(b"P5 2 1 255\n\0\1", "pgm").classes.tolist() == [[0, 1]]


def test_the_first_of_many_pages_is_enough_to_refuse_them(read: Read):
    """Walking all directories costs the square of their number: each is compared with those before it."""
    tags = ((256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1))
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    size = len(page) + 4
    pages = (page + struct.pack("<I", 8 + size * number) for number in range(1, 20_000))
    data = b"II*\0" + struct.pack("<I", 8) + b"".join(pages) + page + bytes(4)
    before = time.process_time()
    with pytest.raises(RefusedImage, match="several pages"):
        read(data, "tif", limits=LARGE)
    assert time.process_time() - before < 1.0


def test_a_label_of_a_million_colours_is_counted_in_part(read: Read):
    codes = np.arange(2_000_000, dtype=np.uint32).reshape(1000, 2000)
    colors = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)
    with pytest.raises(UnknownValue, match="0,0,0 at row 0, column 0") as caught:
        read(Image.fromarray(colors), "ppm", limits=LARGE, label_format="rgb")
    assert len(caught.value.values) < 5000


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_label_is_turned_as_its_own_orientation_says(read: Read, tmp_path: Path, ending: str):
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(INDICES).save(tmp_path / f"turned.{ending}", exif=tag)
    found = read((tmp_path / f"turned.{ending}").read_bytes(), ending)
    assert found.classes.tolist() == np.rot90(INDICES, -1).tolist() and found.orientation == 6
    assert read(INDICES, ending).orientation is None


def test_a_sparse_tiff_is_refused(read: Read):
    file = io.BytesIO()
    tifffile.imwrite(file, INDICES, metadata=None)
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as tiff:
        place = tiff.pages[0].tags["StripOffsets"].valueoffset
    data = bytearray(file.getvalue())
    data[place : place + 4] = bytes(4)
    with pytest.raises(RefusedImage, match="lacks a strip"):
        read(bytes(data), "tif", label_map={73: 0, 42: 1, 0: 2})


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("depth", "color"), [(8, 0), (1, 0), (8, 2), (16, 0), (4, 3)])
def test_a_png_that_lacks_rows_is_no_label_and_no_image(read: Read, depth: int, color: int, interlaced: int):
    """Its stream ends in order but too early; the rest would be class 0, and black."""
    width, height, bits = 9, 5, depth * (3 if color == 2 else 1)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = [bytes(1 + -(-len(range(x, width, right)) * bits // 8)) for x, y, right, down in passes
            for _ in range(y, height, down)]  # fmt: skip

    def drawn(rows: list[bytes], start: bytes = b"") -> bytes:
        palette = [(b"PLTE", bytes(48))] if color == 3 else []
        header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
        parts = [(b"IHDR", header), *palette, (b"IDAT", start + zlib.compress(b"".join(rows))), (b"IEND", b"")]
        chunks = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
                  for kind, data in parts)  # fmt: skip
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

    read_as = {"label_format": "rgb", "label_map": {"0,0,0": 0}} if color == 2 else {}
    assert read(drawn(rows), **read_as).classes.shape == (height, width)
    with pytest.raises(RefusedImage, match="pixels are missing"):
        read(drawn(rows[:-1]), **read_as)
    with pytest.raises(RefusedImage, match="damaged"):
        read(drawn(rows, b"no zlib"), **read_as)
    with pytest.raises(RefusedImage, match="pixels are missing") as caught:
        decode_image(drawn(rows[:-1]), max_bytes=10**6, max_pixels=10**6)
    assert caught.value.reason == "truncated"
