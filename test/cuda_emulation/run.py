# SPDX-License-Identifier: Apache-2.0
"""run.py LIBRARY ARGUMENTS: run pytest with another library in the place of netwarp_ros/ops/libnetwarp_ops.so."""

from __future__ import annotations

import sys

import pytest
import torch

library, *arguments = sys.argv[1:]
load = torch.ops.load_library
torch.ops.load_library = lambda path: load(library)
pytest.register_assert_rewrite(
    "test_cuda", "test_dis", "test_operator", "test_resize_argmax"
)  # cases.py imports tests from them
sys.exit(pytest.main(arguments))
