# SPDX-License-Identifier: Apache-2.0
"""Evaluation of models on recordings: scores, comparisons, plots and reports."""
