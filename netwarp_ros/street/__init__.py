# SPDX-License-Identifier: Apache-2.0
"""The synthetic street: video with exact labels and exact flow, rendered on demand.

`street` makes the frames. `scene` says what is around the camera, built in `objects` from the pictures in `textures`.
`render` draws it, and `ground` what it stands on.
"""

from __future__ import annotations

from netwarp_ros.street.street import Street, StreetFrame

__all__ = ["Street", "StreetFrame"]
