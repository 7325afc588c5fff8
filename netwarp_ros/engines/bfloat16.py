# SPDX-License-Identifier: Apache-2.0
"""Whether bfloat16 is of use on this CPU."""

from __future__ import annotations

import os

import torch

_ISAS_WITHOUT = {"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni"}
"""Limits, in lower case, that keep oneDNN from the bfloat16 instructions of AVX-512."""


def onednn_limit() -> str:
    """Return the setting that keeps oneDNN, and OpenVINO with it, from bfloat16, as NAME=VALUE; empty if none does."""
    name = "ONEDNN_MAX_CPU_ISA" if "ONEDNN_MAX_CPU_ISA" in os.environ else "DNNL_MAX_CPU_ISA"
    value = os.environ.get(name, "")
    return f"{name}={value}" if value.lower() in _ISAS_WITHOUT else ""


def cpu_computes_bfloat16() -> bool:
    """Whether PyTorch uses AVX512_BF16 here: the CPU has it, and the environment does not limit PyTorch or oneDNN."""
    return (
        bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        and torch.backends.cpu.get_cpu_capability() == "AVX512"  # less if ATEN_CPU_CAPABILITY says so
        and not onednn_limit()
    )
