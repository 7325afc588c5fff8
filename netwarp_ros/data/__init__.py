# SPDX-License-Identifier: Apache-2.0
"""What networks are trained and judged on: recordings, labels and the classes they are of."""
