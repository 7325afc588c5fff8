# SPDX-License-Identifier: Apache-2.0
"""The synthetic street: video with exact labels and exact flow, rendered on demand."""

from __future__ import annotations

from netwarp_ros.street.street import RATES, SIZES, Street, StreetFrame

__all__ = ["RATES", "SIZES", "Street", "StreetFrame"]
