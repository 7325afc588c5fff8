# SPDX-License-Identifier: Apache-2.0
"""Data sets for training and evaluation: labelled frames, and clips that end with one."""
