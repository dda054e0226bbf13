"""Restyle a source image to a target frame, so that true labels can judge or train under the target's appearance.

Two steps. First the amplitudes of the lowest spatial frequencies are swapped, which carries over illumination, haze
and vignetting: Fourier Domain Adaptation (Yang and Soatto, CVPR 2020). Then each CIELAB channel gets the frame's mean
and standard deviation, which settles the colours: Reinhard et al., "Color Transfer between Images" (IEEE CG&A 2001).

On CamVid day to dusk the two together were clearly better than each alone (docs/explanation/gate.md).
"""

import torch
import torch.nn.functional as F
from kornia.color import lab_to_rgb, rgb_to_lab
from torch import Tensor

BETA = 0.05
"""Half side of the swapped window of frequencies, as a share of the shorter side; the middle one of FDA's three."""
MAX_GAIN = 4.0
"""Largest factor by which a channel's contrast is raised: an almost grey image would otherwise become amplified noise.
"""


def restyle(pixels: Tensor, frame: Tensor) -> Tensor:
    """Give the source image `pixels` uint8 [h, w, 3] the appearance of `frame` uint8 [H, W, 3]; both RGB."""
    image, guide = (each.permute(2, 0, 1).float() / 255.0 for each in (pixels, frame))  # [3, h, w] in 0-1
    styled = match_colours(swap_low_frequencies(image, guide), guide)
    return (styled * 255.0).round().to(torch.uint8).permute(1, 2, 0).contiguous()


def restyled(images: Tensor, frames: Tensor, counted: Tensor, *, reach: float, max_gain: float) -> Tensor:
    """Give each of `images` [B, 3, h, w] the appearance of its row of `frames` [B, 3, H, W]; all RGB in 0-1.

    `counted` [B, H, W] bool is False on padding of the frames. `reach` and `max_gain` take the places of `BETA` and
    `MAX_GAIN`.
    """
    styled = []
    for image, frame, known in zip(images, frames, counted, strict=True):
        mean = (frame * known).sum((1, 2), keepdim=True) / known.sum().clamp(min=1)
        filled = torch.where(known, frame, mean)  # an edge of the padding would be a frequency of its own
        styled.append(match_colours(swap_low_frequencies(image, filled, reach), frame, known, max_gain))
    return torch.stack(styled)


def swap_low_frequencies(image: Tensor, guide: Tensor, reach: float = BETA) -> Tensor:
    """Return `image` [3, h, w] with the low-frequency amplitudes of `guide` [3, H, W] and its own phases, in 0-1."""
    height, width = image.shape[-2:]
    guide = F.interpolate(guide[None], (height, width), mode="bilinear", antialias=True)[0]
    spectrum, other = torch.fft.rfft2(image), torch.fft.rfft2(guide)  # [3, h, w // 2 + 1]
    furthest = int(min(height, width) * reach)
    rows = (torch.fft.fftfreq(height, 1.0 / height, device=image.device)).abs() <= furthest
    columns = torch.fft.rfftfreq(width, 1.0 / width, device=image.device) <= furthest
    amplitude = torch.where(rows[:, None] & columns, other.abs(), spectrum.abs())
    swapped: Tensor = torch.fft.irfft2(torch.polar(amplitude, spectrum.angle()), s=(height, width))
    return swapped.clamp(0.0, 1.0)


def match_colours(image: Tensor, guide: Tensor, counted: Tensor | None = None, max_gain: float = MAX_GAIN) -> Tensor:
    """Return `image` [3, h, w] in 0-1 with mean and deviation of each CIELAB channel of `guide`; both in 0-1.

    `counted` [H, W] bool: which pixels of `guide` count; None: all.
    """
    lab, wanted = rgb_to_lab(image[None])[0], rgb_to_lab(guide[None])[0]
    own_std, own_mean = torch.std_mean(lab, dim=(1, 2), keepdim=True, correction=0)
    if counted is None:
        std, mean = torch.std_mean(wanted, dim=(1, 2), keepdim=True, correction=0)
    else:
        share = counted / counted.sum().clamp(min=1)
        mean = (wanted * share).sum((1, 2), keepdim=True)
        std = ((wanted - mean).square() * share).sum((1, 2), keepdim=True).sqrt()
    gain = (std / own_std.clamp(min=1e-6)).clamp(max=max_gain)
    moved: Tensor = lab_to_rgb(((lab - own_mean) * gain + mean)[None], clip=True)[0]
    return moved.clamp(0.0, 1.0)
