"""Networks of an operator's own package: `network.name: package.module:callable`.

The callable gets `num_classes` and `network.options` and returns one of two things:

- a module with `encode(images)`, which returns a tuple of maps, and `decode(features, size)`, which returns logits;
- any module, of which `network.advanced.encoder_module` and `decoder_module` name the two parts.

Both become a `SegmentationNetwork`, whose encoder and decoder share no tensor: the optimizer, Masked Feature Modeling
and activation checkpointing treat the two differently. Building runs code of that package, so the configuration is
trusted like a program (docs/how-to/security.md).
"""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import NetworkMismatch
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture

PROBE = (64, 96)
"""Height and width of the image that a network sees when it is built (pixels)."""


class OwnNetwork(SegmentationNetwork):
    """A network with `encode` and `decode` of its own; encoder and decoder are that module with a part of its children.

    `prefixes` maps names of weights in the module that its author wrote to names here.
    """

    def __init__(
        self, model: nn.Module, children: Mapping[str, str], num_classes: int, channels: Sequence[int]
    ) -> None:
        encoder, decoder = (_restricted(model, children, part) for part in ("encoder", "decoder"))
        super().__init__(encoder, decoder, num_classes=num_classes, feature_channels=channels)
        self.prefixes = {f"{child}.": f"{part}.{child}." for child, part in children.items()}

    def decode(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return logits `[B, K, *size]` of feature maps, contiguous."""
        logits: Tensor = self.decoder(tuple(features), size)
        return logits.contiguous()


class CutNetwork(SegmentationNetwork):
    """Any module, cut at two named submodules; the decoder gets what the encoder returned: map, list, tuple or dict."""

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, names: tuple[str, str], num_classes: int, like: object
    ) -> None:
        channels = [level.shape[1] for level in _levels(like)]
        super().__init__(encoder, decoder, num_classes=num_classes, feature_channels=channels)
        self._keys = list(like) if isinstance(like, Mapping) else None
        self._single = isinstance(like, Tensor)
        self.prefixes = {f"{names[0]}.": "encoder.", f"{names[1]}.": "decoder."}

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return feature maps `[B, C_l, H_l, W_l]` of normalised images `[B, 3, H, W]`, deepest last."""
        return _levels(self.encoder(images))

    def decode(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return logits `[B, K, *size]` of feature maps, resized bilinearly."""
        given: Any = features[0] if self._single else tuple(features)
        if self._keys is not None:
            given = dict(zip(self._keys, features, strict=True))
        return super().decode(given, size)


def build_own(settings: Architecture, num_classes: int) -> SegmentationNetwork:
    """Build the network that `settings.name` names, with untrained weights. Raises NetworkMismatch, naming the cause.

    It sees one blank image, which gives its channels and tells to which part each child belongs.
    """
    model = _call(settings, num_classes)
    _refuse_loose_tensors(model, settings.name)
    if settings.encoder_module is not None and settings.decoder_module is not None:
        return _cut(model, settings, (settings.encoder_module, settings.decoder_module), num_classes)
    if not all(callable(getattr(model, name, None)) for name in ("encode", "decode")):
        raise NetworkMismatch(
            f"network.name: {settings.name} returned a {type(model).__name__} without `encode` and `decode`; write "
            "them, or name two submodules with network.advanced.encoder_module and network.advanced.decoder_module"
        )
    with probing(model, settings.name):
        images = torch.zeros(1, 3, *PROBE, requires_grad=True)
        maps = as_maps(model.encode(images), f"{settings.name}: encode")  # type: ignore[operator]
        children = _parts_of_children(model, maps, settings.name)
        network = OwnNetwork(model, children, num_classes, [level.shape[1] for level in maps])
        _decode_once(network, maps, settings.name)
    return network


def renamed_weights(network: SegmentationNetwork, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` under the names of `network`: those of its author's module are prefixed with their part."""
    expected = network.state_dict().keys()
    prefixes: Mapping[str, str] = getattr(network, "prefixes", {})
    if tensors.keys() == expected or not prefixes:
        return dict(tensors)
    return {_renamed(name, prefixes): tensor for name, tensor in tensors.items()}


def changed_code(network: nn.Module) -> str:
    """Return what to do when weights do not fit an own network: its code changes without a word; else nothing."""
    if not isinstance(network, OwnNetwork | CutNetwork):
        return ""
    return "; the code of this network may have changed since: install again what the weights were made with"


def as_maps(value: object, what: str) -> tuple[Tensor, ...]:
    """Return what `encode` gave as a tuple of maps. Raises NetworkMismatch, naming `what`, for anything else."""
    if not isinstance(value, tuple | list) or not value or not all(isinstance(level, Tensor) for level in value):
        raise NetworkMismatch(f"{what} returned {_named(value)}, expected a tuple of maps [B, C, H, W], deepest last")
    for place, level in enumerate(value):
        if level.ndim != 4:
            raise NetworkMismatch(
                f"{what} returned map {place} of shape {list(level.shape)}, expected [B, C, H, W]; tokens must be "
                "reshaped to a map"
            )
    return tuple(value)


def _call(settings: Architecture, num_classes: int) -> nn.Module:
    builder = _imported(settings.name)
    try:
        model = builder(num_classes=num_classes, **settings.options)
    except Exception as error:  # whatever that package raises
        given = ", ".join(["num_classes", *settings.options])
        raise NetworkMismatch(
            f"network.name: {settings.name}({given}) fails with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise NetworkMismatch(f"network.name: {settings.name} returned {_named(model)}, expected a torch.nn.Module")
    return model


def _imported(name: str) -> Callable[..., object]:
    module, _, attribute = name.partition(":")
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names:
        raise NetworkMismatch(f"network.name: {name} belongs to Python itself and builds no network")
    try:
        found = getattr(import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise NetworkMismatch(
            f"network.name: {name}: no module {error.name!r}; install its package where mfmd is installed (`pip "
            "install PACKAGE`), or add its folder to PYTHONPATH"
        ) from error
    except Exception as error:  # whatever that module raises
        raise NetworkMismatch(
            f"network.name: importing {module} fails with {type(error).__name__}: {error}; correct that module"
        ) from error
    if not callable(found):
        what = "has no such name" if found is None else f"has {_named(found)} there"
        raise NetworkMismatch(f"network.name: {name}: {module} {what}; name a function or class that builds a network")
    return found  # type: ignore[no-any-return]


@contextmanager
def probing(model: nn.Module, name: str) -> Iterator[None]:
    """Look at `model` in eval mode, every parameter with a gradient; modes are restored.

    Raises NetworkMismatch, naming `name`, for what its code raises.
    """
    modes = [(module, module.training) for module in model.modules()]
    frozen = [value for value in model.parameters() if not value.requires_grad and value.is_floating_point()]
    model.eval()
    for value in frozen:
        value.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    except NetworkMismatch:
        raise
    except Exception as error:  # whatever that package raises
        raise NetworkMismatch(
            f"network.name: {name} fails on an image [1, 3, {PROBE[0]}, {PROBE[1]}] with {type(error).__name__}: "
            f"{error}"
        ) from error
    finally:
        for value in frozen:
            value.requires_grad_(False)
        for module, mode in modes:
            module.training = mode


def _decode_once(network: OwnNetwork, maps: tuple[Tensor, ...], name: str) -> None:
    """Refuse a `decode` that reads a child of the encoder, or weights that both parts share."""
    try:
        network.decode(maps, PROBE)
    except AttributeError as error:
        if f"encoder.{error.name}." in network.prefixes.values():
            raise NetworkMismatch(
                f"network.name: {name}: `encode` and `decode` both use {error.name!r}; give each its own submodule, or "
                "return what `decode` needs as one more map"
            ) from error
        raise
    encoder = {id(value) for value in network.encoder.parameters()}
    if shared := [key for key, value in network.decoder.named_parameters() if id(value) in encoder]:
        raise NetworkMismatch(f"network.name: {name}: `encode` and `decode` share the weight {shared[0]}; copy it")


def _parts_of_children(model: nn.Module, maps: Sequence[Tensor], name: str) -> dict[str, str]:
    """Return `encoder` or `decoder` for each child of `model` with tensors: the maps depend on weights of encoders."""
    weights = list(model.parameters())
    total = torch.stack([level.float().sum() for level in maps]).sum()
    gradients = torch.autograd.grad(total, weights, allow_unused=True, retain_graph=True) if total.requires_grad else ()
    read = {id(weight) for weight, gradient in zip(weights, gradients, strict=False) if gradient is not None}
    if not read:
        raise NetworkMismatch(f"network.name: {name}: no parameter takes part in `encode`, so it cannot be trained")
    parts = {}
    for child, module in model.named_children():
        inside = {id(weight) for weight in module.parameters()}
        if inside or any(True for _ in module.buffers()):
            parts[child] = "encoder" if inside & read else "decoder"
    return parts


def _restricted(model: nn.Module, children: Mapping[str, str], part: str) -> nn.Module:
    """Return `model` without the children of the other part; its call is `encode` or `decode`.

    Children without tensors stay in both.
    """
    half = copy.copy(model)
    half._modules = {name: child for name, child in model._modules.items() if children.get(name, part) == part}
    half.forward = half.encode if part == "encoder" else half.decode  # type: ignore[assignment]
    return half


def _cut(model: nn.Module, settings: Architecture, names: tuple[str, str], num_classes: int) -> CutNetwork:
    parts = []
    for setting, name in zip(("encoder_module", "decoder_module"), names, strict=True):
        try:
            parts.append(model.get_submodule(name))
        except AttributeError as error:
            known = ", ".join(child for child, _ in model.named_children())
            raise NetworkMismatch(
                f"network.advanced.{setting}: {settings.name} has no submodule {name!r}; it has {known or 'none'}"
            ) from error
    inside = tuple(f"{name}." for name in names)
    if outside := [key for key in model.state_dict() if not key.startswith(inside)]:
        raise NetworkMismatch(
            f"network.name: {settings.name}: {outside[0]} lies in neither {names[0]!r} nor {names[1]!r}; every tensor "
            "belongs to one of the two parts: move it there, or remove what no answer needs"
        )
    with probing(model, settings.name), torch.no_grad():
        like = parts[0](torch.zeros(1, 3, *PROBE))
        as_maps(_levels(like), f"{settings.name}: {names[0]}")
    return CutNetwork(parts[0], parts[1], names, num_classes, like)


def _levels(value: Any) -> tuple[Tensor, ...]:
    if isinstance(value, Tensor):
        return (value,)
    return tuple(value.values() if isinstance(value, Mapping) else value)


def _refuse_loose_tensors(model: nn.Module, name: str) -> None:
    """Refuse tensors that would be in no checkpoint, or in no part."""
    for place, module in model.named_modules():
        loose = [key for key, value in vars(module).items() if isinstance(value, Tensor)]
        if loose:
            raise NetworkMismatch(
                f"network.name: {name}: {'.'.join(filter(None, (place, loose[0])))} is a plain tensor, which no "
                "checkpoint holds; use register_buffer or nn.Parameter"
            )
    direct = [key for key, _ in (*model.named_parameters(recurse=False), *model.named_buffers(recurse=False))]
    if direct:
        raise NetworkMismatch(
            f"network.name: {name}: {direct[0]} is a tensor of the outermost module; put it into a submodule, so that "
            "it belongs to the encoder or to the decoder"
        )


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    old = next((old for old in sorted(prefixes, key=len, reverse=True) if name.startswith(old)), None)
    return name if old is None else prefixes[old] + name.removeprefix(old)


def _named(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
