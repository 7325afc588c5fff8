# SPDX-License-Identifier: Apache-2.0
"""Measurements behind ``netwarp benchmark`` and ``netwarp table``."""
