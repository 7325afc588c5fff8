# SPDX-License-Identifier: Apache-2.0
"""The calibration of a camera, for its masks."""

from __future__ import annotations

from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

from netwarp_ros.models.resampling import Size


def scaled_camera_info(info: CameraInfo, image: Size, mask: Size, header: Header) -> CameraInfo:
    """Return the calibration of masks.

    The calibration of the camera is for its full resolution. The image may be a region of interest of that, and binned;
    the mask is scaled from the image. Pixel centers are at integers, as in OpenCV and in the calibration, so that a
    point x of the image is at (x + 0.5) * s - 0.5 of the mask. (`image_proc` scales the principal point by s alone: by
    up to half a pixel less.)

    Args:
        info: The camera's calibration.
        image: Size of the image.
        mask: Size of the mask.
        header: The image's header.

    Returns:
        Size, K and P of the mask, without binning and region of interest; distortion and R are unchanged. A camera
        that is not calibrated (K is 0) remains so.
    """
    x_scale, x_offset = _along(info.roi.x_offset, info.roi.width or info.width, image[1], mask[1])
    y_scale, y_offset = _along(info.roi.y_offset, info.roi.height or info.height, image[0], mask[0])
    k, p = list(info.k), list(info.p)
    if k[8]:
        k[0], k[1], k[2] = k[0] * x_scale, k[1] * x_scale, k[2] * x_scale + x_offset
        k[4], k[5] = k[4] * y_scale, k[5] * y_scale + y_offset
    if p[10]:
        # Tx = -fx * B is in pixels, too: column 3.
        p[0], p[1], p[2], p[3] = p[0] * x_scale, p[1] * x_scale, p[2] * x_scale + x_offset, p[3] * x_scale
        p[5], p[6], p[7] = p[5] * y_scale, p[6] * y_scale + y_offset, p[7] * y_scale
    return CameraInfo(
        header=header,
        height=mask[0],
        width=mask[1],
        distortion_model=info.distortion_model,
        d=info.d,
        k=k,
        r=info.r,
        p=p,
        roi=RegionOfInterest(do_rectify=info.roi.do_rectify),
    )


def _along(offset: int, region: int, image: int, mask: int) -> tuple[float, float]:
    """Return scale s and offset o along an axis: a point x of the full resolution is at s * x + o of the mask.

    Args:
        offset: Where the region of interest begins.
        region: Its length, or that of the full resolution; 0 if it is unknown.
        image: Length of the image: that of the region, after binning.
        mask: Length of the mask.
    """
    scale = mask / (region or image)
    return scale, scale * (0.5 - offset) - 0.5
