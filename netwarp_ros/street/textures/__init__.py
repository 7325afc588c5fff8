# SPDX-License-Identifier: Apache-2.0
"""Random textures of the synthetic street's objects, one module for each kind of object.

Colors are BGR. Their averages follow CamVid's: a street much darker than its sky, brick and slate, dark clothes.
"""
