"""Tests for the author of a network: a class to inherit, which pytest collects in the author's own tests.

    from adapters.testing import NetworkContract

    class TestMine(NetworkContract):
        network = "my_package.unet:build"
        options = {"width": 16}

No test framework is needed to import this file.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from adapters.mfm.branch import mfm_loss
from adapters.mfm.rebuilder import build_rebuilder
from adapters.networks import contract
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from configs.mfm import MfmAblation, MfmSettings
from configs.network import Architecture


class NetworkContract:
    """What every network of mfmd keeps. Set `network`, and `options` and the two parts as in the configuration."""

    network: ClassVar[str]
    """`network.name`."""
    options: ClassVar[Mapping[str, Any]] = {}
    """`network.options`."""
    encoder_module: ClassVar[str | None] = None
    """`network.advanced.encoder_module`."""
    decoder_module: ClassVar[str | None] = None
    """`network.advanced.decoder_module`."""
    num_classes: ClassVar[int] = 5
    """Classes that it is built for."""

    def build(self) -> SegmentationNetwork:
        """Return the network, untrained; override it for one that is built in another way."""
        settings = Architecture(
            name=self.network,
            options=dict(self.options),
            encoder_module=self.encoder_module,
            decoder_module=self.decoder_module,
        )
        return build_network(settings, self.num_classes)

    def test_maps_and_logits_have_their_shapes(self) -> None:
        """Check 4-D maps, deepest last, and logits of the image's size, for sides that no stride divides too."""
        contract.check_shapes(self.build())

    def test_eval_mode_repeats(self) -> None:
        """Check that two passes in eval mode agree and change nothing."""
        contract.check_repeats(self.build())

    def test_images_of_a_batch_are_independent(self) -> None:
        """Check that batching does not change an answer."""
        contract.check_images_are_independent(self.build())

    def test_every_trained_parameter_gets_a_gradient(self) -> None:
        """Check one training step with two images, and one with a single image."""
        contract.check_gradients(self.build())

    def test_the_state_dict_holds_everything(self) -> None:
        """Check that a second build takes the weights of the first one strictly and then answers alike."""
        contract.check_state(self.build(), self.build())

    def test_masked_feature_modeling_trains_it(self) -> None:
        """Check that rebuilt maps reach the loss and that its gradient reaches the encoder."""
        torch.manual_seed(0)
        network, size = self.build().train(), (64, 96)
        settings = MfmSettings(ablation=MfmAblation(dim=32, heads=4, blocks=1))
        rebuilder = build_rebuilder(network, size, settings)
        images, labels = torch.randn(2, 3, *size), torch.randint(0, self.num_classes, (2, *size))
        mfm_loss(network, rebuilder, images, labels, torch.ones(2, *size), StepRng(0)).backward()
        trained = [value for value in network.encoder.parameters() if value.requires_grad]
        assert any(value.grad is not None and bool(value.grad.abs().sum() > 0) for value in trained)
