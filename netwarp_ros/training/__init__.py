# SPDX-License-Identifier: Apache-2.0
"""Training of image CNNs and video CNNs: `trainer.train` trains what `config.load_config` has read."""
