# SPDX-License-Identifier: Apache-2.0
"""Classes: their names, colors and ids, in masks and in label maps; and classes that become others."""

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
from netwarp_ros.classes.label_map import LabelMap, label_map_file, load_label_map

__all__ = [
    "MAX_CLASSES",
    "MAX_ID",
    "VOID",
    "ClassEntry",
    "ClassSet",
    "LabelMap",
    "classes_from_labels",
    "generated_color",
    "label_map_file",
    "load_classes",
    "load_label_map",
]
