# SPDX-License-Identifier: Apache-2.0
"""Training of image CNNs and of video CNNs."""
