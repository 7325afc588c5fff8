# SPDX-License-Identifier: Apache-2.0
"""Post-training quantization to int8: calibration on recorded frames, NNCF, and what it costs.

Only ``netwarp quantize`` needs this package. `netwarp_ros.engines.int8` has the files, and runs what is in them.
"""
