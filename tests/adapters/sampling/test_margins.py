"""Margins: exact rows of the published sizes, shares of any other, padding outside, mirrored with the picture."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from adapters.sampling.crops import TargetCrops
from adapters.sampling.margins import Region, random_region, trusted_part
from adapters.self_training.pseudo_labels import pseudo_label
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.durable.digest import digest_of
from storage.media.images import fit_frame
from tests.sections import recipe_settings


def box(trusted: np.ndarray) -> tuple[int, int, int, int]:
    """First and last row, first and last column that are trusted; the rest must not be."""
    rows, columns = np.flatnonzero(trusted.any(1)), np.flatnonzero(trusted.any(0))
    assert trusted.sum() == len(rows) * len(columns)
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def test_daformer_cuts_rows_0_to_14_and_the_last_120_of_a_512_crop() -> None:
    for top, left in ((0, 0), (0, 300), (200, 77)):
        trusted = trusted_part(Region(top, left, 512, 512), (1024, 2048), recipe_settings("daformer"))
        assert box(trusted) == (15, 512 - 120 - 1, 0, 511)


@pytest.mark.parametrize("name", ["hrda", "mic"])
@pytest.mark.parametrize(("size", "rows"), [((1024, 2048), (30, 783)), ((512, 1024), (15, 391))])
def test_whole_frame_margins_have_the_published_rows_and_columns(name, size, rows) -> None:
    trusted = trusted_part(Region(0, 0, *size), size, recipe_settings(name))
    side = 30 * size[1] // 2048
    assert box(trusted) == (*rows, side, size[1] - 1 - side)


def test_dacs_has_none() -> None:
    assert trusted_part(Region(3, 4, 50, 60), (100, 100), recipe_settings("dacs")).all()


def test_margins_scale_with_the_crop() -> None:
    assert box(trusted_part(Region(0, 0, 128, 256), (180, 320), recipe_settings("daformer"))) == (4, 97, 0, 255)


def test_margins_of_the_frame_are_cropped_with_it() -> None:
    """A crop's mask is the crop of the frame's mask; one from the middle is all trusted, one of a margin not at all."""
    shares = {"margin_top": 0.2, "margin_bottom": 0.3, "margin_left": 0.1, "margin_right": 0.05}
    recipe, size = recipe_settings(**shares, margin_of="image"), (60, 90)
    whole = trusted_part(Region(0, 0, *size), size, recipe)
    assert box(whole) == (12, 41, 9, 90 - 5 + 0)
    generator = np.random.default_rng(0)
    for _ in range(200):
        region = random_region(size, (20, 30), 1.0, generator)
        assert np.array_equal(trusted_part(region, size, recipe), region.of(whole))
    assert trusted_part(Region(15, 20, 20, 30), size, recipe).all()
    assert (
        not trusted_part(Region(0, 20, 12, 30), size, recipe).any()
        and not trusted_part(Region(42, 20, 18, 30), size, recipe).any()
    )


@pytest.mark.parametrize("pair", [("margin_top", "margin_bottom"), ("margin_left", "margin_right")])
def test_margins_that_leave_nothing_are_refused(pair) -> None:
    with pytest.raises(ValidationError, match=rf"{pair[0]} \+ {pair[1]} is 1.1"):
        recipe_settings(**{pair[0]: 0.5, pair[1]: 0.6})


@pytest.fixture
def frame(training_state):
    """A buffer of 48x64 with one frame of 24x64, its columns numbered from 1: half of it is padding."""
    settings = training_state.settings()
    pixels = np.broadcast_to(np.arange(1, 65, dtype=np.uint8)[None, :, None], (24, 64, 3)).copy()
    training_state.layout.create()
    with FrameBuffer.open(training_state.layout, settings.buffer, writable=True) as buffer:
        digest, fact = digest_of(pixels.tobytes()), FileFact("a.png", pixels.nbytes, 1)
        buffer.append([NewFrame(fact, digest, 0.0, 24, 64, fit_frame(pixels, 48, 64))])
    with FrameBuffer.open(training_state.layout, settings.buffer, writable=False) as buffer:
        yield buffer


@pytest.mark.parametrize("origin", ["crop", "image"])
def test_padding_is_never_trusted_and_margins_are_of_what_is_not_padding(frame, origin) -> None:
    recipe = recipe_settings(margin_top=0.25, margin_bottom=0.5, margin_of=origin)
    crops = TargetCrops(frame, frame.records(), recipe, crop=(48, 64), batch_size=3, seed=(0,))
    batch = next(crops)
    assert batch.valid[:, :24].all() and not batch.valid[:, 24:].any()
    for trusted in batch.trusted.numpy():
        assert box(trusted) == (6, 11, 0, 63)


@pytest.mark.parametrize("origin", ["crop", "image"])
def test_margins_are_mirrored_with_the_picture(frame, origin) -> None:
    recipe = recipe_settings(margin_left=0.25, margin_of=origin)
    crops = TargetCrops(frame, frame.records(), recipe, crop=(24, 64), batch_size=20, seed=(0,))
    batch = next(crops)
    mirrored = 0
    for image, trusted in zip(batch.images.numpy(), batch.trusted.numpy(), strict=True):
        assert np.array_equal(trusted, image[..., 0] > 16)
        mirrored += int(image[0, 0, 0] == 64)
    assert 3 <= mirrored <= 17


def test_pixels_on_a_margin_count_in_the_share_but_have_no_weight() -> None:
    logits = torch.zeros(1, 2, 4, 4)
    logits[:, 0, :2] = 50.0  # sure in the upper half, which is the margin
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    trusted = valid.clone()
    trusted[:, :2] = False
    pseudo = pseudo_label(logits, valid, trusted, 0.968)
    assert pseudo.kept_ratio == 0.5
    assert not pseudo.weight[:, :2].any() and (pseudo.weight[:, 2:] == 0.5).all()
    assert (pseudo.labels[:, :2] == 0).all()  # the label stands: MFM's and the mix's inputs need one
