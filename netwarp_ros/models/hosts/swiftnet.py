# SPDX-License-Identifier: Apache-2.0
"""SwiftNet on EfficientNet-Lite: a pretrained mobile classifier with a light decoder, for few labelled images.

Sources: Oršić, Krešo, Bevandić, Šegvić, "In Defense of Pre-trained ImageNet Architectures for Real-time Semantic
Segmentation of Road-driving Images", CVPR 2019, for the architecture: a classifier as backbone, a pyramid of pooled
contexts on its last features, and upsampling modules that add its finer features one after another. Tan and Le,
"EfficientNet", ICML 2019, and its Lite variant (no squeeze-and-excitation, ReLU6) for the backbone: Lite0 is B0 at
224x224, 75 % top-1 on ImageNet; Lite2 is B2 at 260x260, 77 %.

Departures:

* The backbone is Lite0 or Lite2 and not ResNet-18, which has two to three times the parameters. With the decoder, Lite0
  takes 9 MB in half precision, Lite2 12 MB.
* The decoder goes up to stride 2, with few channels: on images of 480x360, poles and signs are two or three pixels
  wide.
* The context pyramid is DDRNet's, which refines each scale together with the next finer one.
* Convolutions pad both sides equally. TensorFlow, which the published weights come from, pads even maps on the right
  and lower side only; fine-tuning adapts the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netwarp_ros.models.hosts.blocks import ContextPyramid, initialise, norm_relu_conv, resize

_KERNELS = (3, 3, 5, 3, 5, 5, 3)  # of each stage (EfficientNet, Table 1)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
_OUTPUTS = (0, 1, 2, 4, 6)  # the last stages of strides 2, 4, 8, 16 and 32


class SwiftNet(nn.Module):
    """SwiftNet with an EfficientNet-Lite backbone and logits at stride 2; the module's docstring gives its sources.

    Possible insertion layers (stride, channels of Lite0): ``backbone.stages.0`` (2, 16), ``backbone.stages.1``
    (4, 24), ``backbone.stages.2`` (8, 40), ``backbone.stages.4`` (16, 112), ``backbone.stages.6`` (32, 320),
    ``context`` (32, 128), ``up16`` (16, 128), ``up8`` (8, 128), ``up4`` (4, 64), ``up2`` (2, 32). Any image size works:
    coarse maps are resized to the grids of the finer ones.

    Args:
        num_classes: Number of classes without void.
        backbone: The backbone, with random weights.
        auxiliary: Also build a classifier on ``up8``. Only training needs it.
    """

    def __init__(self, num_classes: int, backbone: EfficientNetLite, *, auxiliary: bool) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}, must be at least 2")
        s2, s4, s8, s16, s32 = backbone.channels
        self.context = ContextPyramid(s32, 128, 128)
        self.up16 = Upsampling(nn.Identity(), s16, 128, norm_relu_conv(128, 128, kernel=3))
        self.up8 = Upsampling(nn.Identity(), s8, 128, norm_relu_conv(128, 128, kernel=3))
        self.up4 = Upsampling(nn.Identity(), s4, 128, _rectified(norm_relu_conv(128, 64, kernel=3), 64))
        self.up2 = Upsampling(
            nn.Conv2d(64, 32, 1, bias=False), s2, 32, _rectified(norm_relu_conv(32, 32, kernel=3), 32)
        )
        self.classifier = nn.Conv2d(32, num_classes, 1)
        self.auxiliary = norm_relu_conv(128, num_classes) if auxiliary else None
        initialise(self)
        self.backbone = backbone

    def forward(self, frame: Tensor, *, auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Segment a batch of frames.

        Args:
            frame: (B, 3, H, W), RGB, normalised.
            auxiliary: Also return the auxiliary logits.

        Returns:
            Logits (B, num_classes, ceil(H/2), ceil(W/2)); with ``auxiliary``, a pair whose second member is
            (B, num_classes, ceil(H/8), ceil(W/8)).

        Raises:
            ValueError: If ``auxiliary`` is set and the network was built without it.
        """
        if auxiliary and self.auxiliary is None:
            raise ValueError("this network has no auxiliary head; build it with auxiliary=True")
        s2, s4, s8, s16, s32 = self.backbone(frame)
        stride8 = self.up8(self.up16(self.context(s32), s16), s8)
        logits = self.classifier(self.up2(self.up4(stride8, s4), s2))
        if auxiliary and self.auxiliary is not None:
            return logits, self.auxiliary(stride8)
        return logits


class SwiftNetLite0(SwiftNet):
    """`SwiftNet` on EfficientNet-Lite0: 4.3 million parameters."""

    def __init__(self, num_classes: int, *, auxiliary: bool = False) -> None:
        backbone = EfficientNetLite(blocks=(1, 2, 2, 3, 3, 4, 1), channels=(16, 24, 40, 80, 112, 192, 320))
        super().__init__(num_classes, backbone, auxiliary=auxiliary)


class SwiftNetLite2(SwiftNet):
    """`SwiftNet` on EfficientNet-Lite2: 5.8 million parameters. Its backbone is deeper (1.2) and wider (1.1)."""

    def __init__(self, num_classes: int, *, auxiliary: bool = False) -> None:
        backbone = EfficientNetLite(blocks=(1, 3, 3, 4, 4, 5, 1), channels=(16, 24, 48, 88, 120, 208, 352))
        super().__init__(num_classes, backbone, auxiliary=auxiliary)


class Upsampling(nn.Module):
    """Upsample coarse features, add finer ones through a 1x1 convolution, and refine the sum.

    Args:
        reduce: Applied to the coarse features before upsampling.
        lateral: Channels of the finer features.
        width: Channels of the sum.
        refine: Applied to the sum.
    """

    def __init__(self, reduce: nn.Module, lateral: int, width: int, refine: nn.Module) -> None:
        super().__init__()
        self.reduce = reduce
        self.lateral = nn.Conv2d(lateral, width, 1, bias=False)
        self.refine = refine

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return self.refine(resize(self.reduce(coarse), like=fine) + self.lateral(fine))


class EfficientNetLite(nn.Module):
    """The convolutional part of EfficientNet-Lite, without its last 1x1 convolution to 1280 channels.

    Args:
        blocks: Number of blocks of each of the seven stages.
        channels: Channels of each stage.

    Attributes:
        channels: Channels of the features at strides 2, 4, 8, 16 and 32.
    """

    def __init__(self, blocks: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels[stage] for stage in _OUTPUTS)
        self.stem = _conv_norm_relu(3, 32, kernel=3, stride=2)
        self.stages = nn.ModuleList()
        inputs = 32
        for count, kernel, stride, expansion, outputs in zip(
            blocks, _KERNELS, _STRIDES, _EXPANSIONS, channels, strict=True
        ):
            stage = [InvertedBottleneck(inputs, outputs, kernel, stride, expansion)]
            stage += [InvertedBottleneck(outputs, outputs, kernel, 1, expansion) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(*stage))
            inputs = outputs

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the features at strides 2, 4, 8, 16 and 32."""
        features, outputs = self.stem(frame), []
        for stage in self.stages:
            features = stage(features)
            outputs.append(features)
        s2, s4, s8, s16, s32 = (outputs[stage] for stage in _OUTPUTS)
        return s2, s4, s8, s16, s32


class InvertedBottleneck(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; with a shortcut if input and output have one shape."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.expand = _conv_norm_relu(inputs, middle, kernel=1) if expansion > 1 else nn.Identity()
        self.depthwise = _conv_norm_relu(middle, middle, kernel=kernel, stride=stride, depthwise=True)
        self.project = nn.Sequential(nn.Conv2d(middle, outputs, 1, bias=False), _norm(outputs))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        output = self.project(self.depthwise(self.expand(features)))
        return features + output if self.shortcut else output


class _DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that ignores autocast in training on a CPU if it is strided or 5x5.

    oneDNN's gradient of such a convolution takes two to five times as long in bfloat16 as in float32 (PyTorch 2.13,
    AVX-512 with AMX, channels last).
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and input.device.type == "cpu" and (self.stride[0] > 1 or self.kernel_size[0] > 3):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.to(self.weight.dtype))
        return super().forward(input)


def _conv_norm_relu(
    inputs: int, outputs: int, *, kernel: int, stride: int = 1, depthwise: bool = False
) -> nn.Sequential:
    kind, groups = (_DepthwiseConv2d, inputs) if depthwise else (nn.Conv2d, 1)
    convolution = kind(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, _norm(outputs), nn.ReLU6())


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _rectified(convolution: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())
