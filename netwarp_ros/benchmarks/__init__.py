# SPDX-License-Identifier: Apache-2.0
"""Measurements behind ``netwarp benchmark``: what is timed, how, and on what machine."""
