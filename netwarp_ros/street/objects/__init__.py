# SPDX-License-Identifier: Apache-2.0
"""What stands and moves on the synthetic street, one module for each kind of object."""
