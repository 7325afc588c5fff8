# SPDX-License-Identifier: Apache-2.0
"""Programs around the nodes: the demonstration, the live view, and load tests."""
