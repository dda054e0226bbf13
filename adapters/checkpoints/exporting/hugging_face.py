"""Export an imported transformers model as a Hugging Face directory."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from adapters.errors import ExportRefused
from adapters.networks.hf_directory import quiet_transformers
from adapters.networks.huggingface.models import build_huggingface
from adapters.networks.huggingface.pixels import scaling_of
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture
from storage import durable
from storage.registry.manifest import Manifest

_MASK_PROCESSORS = {
    "eomt": "EomtImageProcessor",
    "eomt_dinov3": "EomtImageProcessor",
    "mask2former": "Mask2FormerImageProcessor",
    "maskformer": "MaskFormerImageProcessor",
    "oneformer": "OneFormerImageProcessor",
}
"""Processors that make a map of a mask transformer's queries, by `model_type`."""


def write_huggingface(network: SegmentationNetwork, manifest: Manifest, folder: Path) -> tuple[str, ...]:
    """Write config.json with mfmd's class names, model.safetensors and preprocessor_config.json.

    The result loads with transformers alone. Raises ExportRefused for a network that transformers has no class for.
    """
    settings = Architecture.model_validate(manifest.network)
    if settings.name != "huggingface" or settings.multi_resolution:
        kind = "multi-resolution" if settings.multi_resolution else settings.name
        raise ExportRefused(
            f"version {manifest.version} is a {kind} network, which transformers has no class for; "
            "export it with --format torch-export or --format onnx"
        )
    twin, model = build_huggingface(settings, len(manifest.classes))  # shares its modules
    twin.load_state_dict(network.state_dict())
    names = [entry["name"] for entry in manifest.classes]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    with quiet_transformers():
        model.save_pretrained(folder)
    preprocessor = _preprocessor(settings, manifest)
    durable.write_text(folder / "preprocessor_config.json", json.dumps(preprocessor, indent=2) + "\n")
    return ("batch", "height", "width")


def _preprocessor(settings: Architecture, manifest: Manifest) -> dict[str, Any]:
    """Return how to prepare images: the model's own pixel scaling, and the size that mfmd fits images to.

    SegFormer's processor resizes, scales and normalises for any model. Only MobileViT's supports BGR, and it has no
    mean. A mask transformer has the processor that reads its queries.
    """
    mean, std, bgr = scaling_of(settings.hf_preprocessor)
    usual = {
        "image_processor_type": "MobileViTImageProcessor" if bgr else "SegformerImageProcessor",
        "do_resize": True,
        "size": {"height": manifest.input_height, "width": manifest.input_width},
        "resample": Image.Resampling[manifest.input_resample.upper()].value,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_flip_channel_order": bgr,
    }
    return usual | _of_masks(settings.hf_config or {})


def _of_masks(hf_config: dict[str, Any]) -> dict[str, Any]:
    """Return what differs for a mask transformer: EoMT sees squares of its own size, as windows over the image."""
    kind = str(hf_config.get("model_type"))
    if kind not in _MASK_PROCESSORS:
        return {}
    found: dict[str, Any] = {"image_processor_type": _MASK_PROCESSORS[kind], "do_pad": False, "size_divisor": 0}
    if kind.startswith("eomt"):
        found |= {"size": {"shortest_edge": hf_config["image_size"], "longest_edge": None}, "do_split_image": True}
    return found
