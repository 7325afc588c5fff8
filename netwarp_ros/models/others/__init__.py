# SPDX-License-Identifier: Apache-2.0
"""Networks by others: how `netwarp convert` reads them, and how their hosts are built from the header of a file."""
