# SPDX-License-Identifier: Apache-2.0
"""PlayData-CNN, the host on which the paper compares insertion layers (Table 1).

Source: Richter, Vineet, Roth, Koltun, "Playing for Data: Ground Truth from Computer Games", ECCV 2016. The network is
the front end of Yu and Koltun (see `netwarp_ros.models.hosts.vgg`), trained on other data. With CamVid's 11 classes it
has the 134.3 million parameters that the paper states.

Departure: the convolutions pad with zeros. Yu and Koltun mirror the frame at its edges instead, so their maps before
``fc6`` extend beyond the frame and do not match its flow.
"""

from __future__ import annotations

from netwarp_ros.models.hosts.vgg import DilatedVGG16


class PlayData(DilatedVGG16):
    """PlayData-CNN; the module's docstring gives its source and the departure from it.

    The paper's insertion layers (stride, channels): ``conv1_2`` (1, 64), ``conv2_2`` (2, 128), ``conv3_3`` (4, 256),
    ``conv4_3`` (8, 512), ``conv5_3`` (8, 512), ``fc6`` (8, 4096), ``fc7`` (8, 4096), ``fc8`` (8, classes). The paper's
    best are ``fc6`` and ``fc7`` together. Any image size works.

    Args:
        num_classes: Number of classes without void.
        width: Channels of the first stage; all others scale with it.
    """

    def __init__(self, num_classes: int, *, width: int = 64) -> None:
        super().__init__(num_classes, width=width, padded=True)
