# SPDX-License-Identifier: Apache-2.0
"""PlayData-CNN, with which the paper finds where to insert NetWarp (Table 1).

Source: Richter, Vineet, Roth, Koltun, "Playing for Data: Ground Truth from Computer Games", ECCV 2016. What is new
there is the data; the network is the front end of Yu and Koltun (see `netwarp_ros.models.hosts.vgg`), which has the
paper's 134.3 million parameters with CamVid's 11 classes.

Departure: convolutions pad their inputs with zeros. Yu and Koltun's do not, and see a frame mirrored at its edges;
their maps before ``fc6`` reach beyond the frame, whose flow would not fit them.
"""

from __future__ import annotations

from netwarp_ros.models.hosts.vgg import DilatedVGG16


class PlayData(DilatedVGG16):
    """PlayData-CNN; see the module's docstring for its sources and what differs.

    Insertion layers of the paper (stride, channels): ``conv1_2`` (1, 64), ``conv2_2`` (2, 128), ``conv3_3`` (4, 256),
    ``conv4_3`` (8, 512), ``conv5_3`` (8, 512), ``fc6`` (8, 4096), ``fc7`` (8, 4096), ``fc8`` (8, classes). The paper's
    best are ``fc6`` and ``fc7`` together. Any image size works.

    Args:
        num_classes: Number of classes, void not counted.
        width: Channels of the first stage; those of the others go with it.
    """

    def __init__(self, num_classes: int, *, width: int = 64) -> None:
        super().__init__(num_classes, width=width, padded=True)
