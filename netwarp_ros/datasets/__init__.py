# SPDX-License-Identifier: Apache-2.0
"""What networks are trained and evaluated on: labelled frames, and clips of frames that end with one."""
