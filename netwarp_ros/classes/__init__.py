# SPDX-License-Identifier: Apache-2.0
"""Classes: their names, colors and ids, in masks and in label maps."""

from netwarp_ros.classes.class_set import (
    MAX_CLASSES,
    MAX_ID,
    VOID,
    ClassEntry,
    ClassSet,
    classes_from_labels,
    generated_color,
    load_classes,
)

__all__ = [
    "MAX_CLASSES",
    "MAX_ID",
    "VOID",
    "ClassEntry",
    "ClassSet",
    "classes_from_labels",
    "generated_color",
    "load_classes",
]
