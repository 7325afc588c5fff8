# SPDX-License-Identifier: Apache-2.0
"""Data sets in all their layouts: which frames are found, with which labels, and what leads up to them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cityscapesscripts.helpers.labels import name2label
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.bag import BagDataset
from netwarp_ros.datasets.camvid import COLORS, VOID, CamVid, from_colors, usual_split
from netwarp_ros.datasets.cityscapes import INSTANCE_SIZES, TRAIN_IDS, Cityscapes
from netwarp_ros.datasets.folder import ImageFolder
from netwarp_ros.datasets.samples import SampleFrames, clips
from netwarp_ros.recordings.messages import COMPRESSED_IMAGE, IMAGE

HEIGHT, WIDTH = 6, 8
CAMVID, CITYSCAPES = load_classes("camvid"), load_classes("cityscapes")
typestore = get_typestore(Stores.ROS2_JAZZY)


def picture(value: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def label(value: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), value, np.uint8)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


# Folders


def labelled_video(root: Path, count: int, labelled: set[int]) -> ImageFolder:
    """Frames number 0 to count - 1, whose grey value is their number and whose class is their number modulo 11."""
    for index in range(count):
        write(root / "images" / f"{index:03d}.png", picture(index))
        if index in labelled:
            write(root / "labels" / f"{index:03d}.png", label(index % 11))
    return ImageFolder(root / "images", root / "labels", CAMVID)


def test_a_folder_gives_the_images_that_have_labels(tmp_path: Path) -> None:
    folder = labelled_video(tmp_path, 5, {1, 4})
    assert [(sample.name, sample.image[0, 0, 0], sample.label[0, 0]) for sample in folder] == [
        ("001", 1, 1),
        ("004", 4, 4),
    ]
    assert len(folder) == 2 and folder.classes is CAMVID
    assert folder[-1].name == "004" and [sample.name for sample in folder[:1]] == ["001"]
    with pytest.raises(IndexError):
        folder[2]


def test_clips_end_with_a_labelled_frame_and_are_void_before_it(tmp_path: Path) -> None:
    folder = labelled_video(tmp_path, 6, {1, 3, 4})
    three = clips(folder, 3)
    assert len(three) == 2  # what is before frame 1 is too short
    assert three[0].images.shape == (3, HEIGHT, WIDTH, 3) and three[0].labels.shape == (3, HEIGHT, WIDTH)
    assert three[0].images[:, 0, 0, 0].tolist() == [1, 2, 3] and three[0].labels[:, 0, 0].tolist() == [1, VOID, 3]
    assert three[-1].images[:, 0, 0, 0].tolist() == [2, 3, 4] and three[-1].labels[:, 0, 0].tolist() == [VOID, 3, 4]
    assert [clip.images[-1, 0, 0, 0] for clip in three[:]] == [3, 4]
    assert [clip.images.shape[0] for clip in clips(folder, 1)] == [1, 1, 1]
    with pytest.raises(IndexError):
        three[2]


def test_clips_of_a_length_that_nothing_has_are_refused(tmp_path: Path) -> None:
    folder = labelled_video(tmp_path, 3, {1})
    with pytest.raises(ValueError, match="images has no clip of 3 frames; the longest clip has 2"):
        clips(folder, 3)
    with pytest.raises(ValueError, match="length is 0: give at least 1"):
        clips(folder, 0)


def test_a_frame_of_another_size_in_a_clip_is_named(tmp_path: Path) -> None:
    folder = labelled_video(tmp_path, 3, {2})
    write(tmp_path / "images" / "001.png", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="001 is 5x4, but 002, the last frame of its clip, is 8x6"):
        clips(folder, 3)[0]


def test_sources_can_be_sent_to_the_processes_that_load(tmp_path: Path) -> None:
    several = clips(labelled_video(tmp_path, 3, {1, 2}), 2)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(several))[1].images, several[1].images)


def test_labels_of_a_folder_are_checked(tmp_path: Path) -> None:
    folder = labelled_video(tmp_path, 2, {0, 1})
    write(tmp_path / "labels" / "001.png", label(13))
    with pytest.raises(ValueError, match=r"001\.png holds class id 13; the ids of camvid are 0 to 10, and 11 for void"):
        folder[1]
    write(tmp_path / "labels" / "007.png", label(0))
    with pytest.raises(FileNotFoundError, match=r"007\.png is the label map of no image"):
        ImageFolder(tmp_path / "images", tmp_path / "labels", CAMVID)
    with pytest.raises(FileNotFoundError, match="no folder .*absent"):
        ImageFolder(tmp_path / "images", tmp_path / "absent", CAMVID)


# CamVid


def test_camvid_as_segnet_has_it(tmp_path: Path) -> None:
    for split, value in (("train", 1), ("val", 2)):
        write(tmp_path / split / "0001TP_006690.png", picture(value))
        write(tmp_path / f"{split}annot" / "0001TP_006690.png", label(value))
    assert [int(CamVid(tmp_path, split)[0].label[0, 0]) for split in ("train", "val")] == [1, 2]
    with pytest.raises(
        FileNotFoundError, match="with a split test: it must hold test/images/ and test/labels/, test/ "
    ):
        CamVid(tmp_path, "test")
    with pytest.raises(ValueError, match="split is 'dev': choose one of train, val, test"):
        CamVid(tmp_path, "dev")


def test_a_split_may_hold_images_and_labels(tmp_path: Path) -> None:
    write(tmp_path / "train" / "images" / "a.png", picture(1))
    write(tmp_path / "train" / "labels" / "a.png", label(3))
    for camvid in (CamVid(tmp_path, "train"), CamVid(tmp_path / "train")):
        assert [sample.name for sample in camvid] == ["a"] and camvid[0].label[0, 0] == 3


def test_camvid_as_it_was_published(tmp_path: Path) -> None:
    names = {"0001TP_006690": "train", "0001TP_008550": "test", "0016E5_07959": "val", "Seq05VD_f00000": "test"}
    colors = list(COLORS)
    for value, name in enumerate(names):
        write(tmp_path / "701_StillsRaw_full" / f"{name}.png", picture(value))
        colored = np.broadcast_to(np.uint8(colors[value][::-1]), (HEIGHT, WIDTH, 3))
        write(tmp_path / "LabeledApproved_full" / f"{name}_L.png", colored)
    assert [sample.name for sample in CamVid(tmp_path)] == sorted(names)
    for split in ("train", "val", "test"):
        assert [sample.name for sample in CamVid(tmp_path, split)] == [name for name in names if names[name] == split]
    assert CamVid(tmp_path, "train")[0].label.tolist() == label(COLORS[colors[0]][1]).tolist()


def test_the_usual_split_has_the_usual_sizes() -> None:
    """By the numbers of CamVid's 701 labelled frames."""
    at_1_hz = [*range(390, 871, 30), 901, *range(930, 2401, 30), *range(4350, 7921, 30), *range(8190, 8641, 30)]
    stems = [f"0016E5_{number:05d}" for number in [*at_1_hz, *range(7959, 8160, 2)]]
    stems += [f"0001TP_{number:06d}" for number in range(6690, 10381, 30)]
    stems += [f"0006R0_f{number:05d}" for number in range(930, 3931, 30)]
    stems += [f"Seq05VD_f{number:05d}" for number in range(0, 5101, 30)]
    assert len(stems) == 701
    splits = [usual_split(stem) for stem in stems]
    assert {split: splits.count(split) for split in set(splits)} == {"train": 367, "val": 101, "test": 233}


def test_the_32_colours_become_11_classes() -> None:
    assert len(COLORS) == 32
    names: dict[int, set[str]] = {}
    for name, value in COLORS.values():
        names.setdefault(value, set()).add(name)
    assert names == {
        0: {"Sky"},
        1: {"Building", "Archway", "Bridge", "Tunnel", "Wall"},
        2: {"Column_Pole", "TrafficCone"},
        3: {"Road", "LaneMkgsDriv", "LaneMkgsNonDriv"},
        4: {"Sidewalk", "ParkingBlock", "RoadShoulder"},
        5: {"Tree", "VegetationMisc"},
        6: {"SignSymbol", "Misc_Text", "TrafficLight"},
        7: {"Fence"},
        8: {"Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus"},
        9: {"Pedestrian", "Animal", "CartLuggagePram", "Child"},
        10: {"Bicyclist", "MotorcycleScooter"},
        11: {"Void"},
    }
    picture_of_all = np.uint8([list(COLORS)])[..., ::-1]
    assert from_colors(picture_of_all, "").tolist() == [[value for _, value in COLORS.values()]]
    for value, color in enumerate(CAMVID.palette.tolist()):  # the class set's colours are CamVid's own
        assert COLORS[tuple(color)][1] == value


def test_a_few_pixels_of_no_colour_are_void_but_not_many() -> None:
    colored = np.broadcast_to(np.uint8([128, 128, 128]), (10, 20, 3)).copy()
    colored[0, 0] = 26, 26, 26
    expected = np.zeros((10, 20), int)
    expected[0, 0] = VOID
    np.testing.assert_array_equal(from_colors(colored, ""), expected)
    colored[0, :3] = 77, 26, 1
    with pytest.raises(ValueError, match=r"a\.png holds the RGB color \(1, 26, 77\), which is not one of"):
        from_colors(colored, "a.png")


def test_camvids_frames_follow_one_another_by_their_names(tmp_path: Path) -> None:
    names = ["0001TP_006690", "0001TP_006720", "0016E5_07959", "0016E5_07961", "0016E5_07963", "0016E5_07969"]
    for value, name in enumerate([*names, "Seq05VD_f00000", "a", "b"]):
        write(tmp_path / "images" / f"{name}.png", picture(value))
        write(tmp_path / "labels" / f"{name}.png", label(value))
    camvid = CamVid(tmp_path)
    assert [camvid.frames_before(index) for index in range(len(camvid))] == [0, 0, 0, 1, 2, 0, 0, 0, 0]
    (clip,) = clips(camvid, 3)
    assert clip.images[:, 0, 0, 0].tolist() == clip.labels[:, 0, 0].tolist() == [2, 3, 4]


# Cityscapes


def cityscapes(root: Path, *, sequence: str = "leftImg8bit_sequence", frames: range = range(17, 22)) -> Path:
    """Two cities with a snippet each, whose frame 19 is labelled; every pixel's grey value is its frame's number."""
    ids = np.resize(np.uint8([7, 26, 24, 29, 0, 33]), (HEIGHT, WIDTH))
    instances = np.where(ids == 26, np.uint16(26001), ids)  # the persons (24) are a group
    for city in ("aachen", "ulm"):
        for frame in frames:
            write(root / sequence / "train" / city / f"{city}_000003_{frame:06d}_leftImg8bit.png", picture(frame))
        stem = root / "gtFine" / "train" / city / f"{city}_000003_000019_gtFine"
        write(stem.with_name(f"{stem.name}_labelIds.png"), ids)
        write(stem.with_name(f"{stem.name}_instanceIds.png"), instances)
        write(stem.with_name(f"{stem.name}_color.png"), picture(1))
    return root


def test_cityscapes_gives_the_labelled_frames_in_19_classes(tmp_path: Path) -> None:
    source = Cityscapes(cityscapes(tmp_path), "train")
    assert [sample.name for sample in source] == ["aachen_000003_000019", "ulm_000003_000019"]
    assert source[1].image[0, 0, 0] == 19 and source.classes.name == "cityscapes"
    expected = np.resize(np.uint8([0, 13, 11, 255, 255, 18]), (HEIGHT, WIDTH))
    np.testing.assert_array_equal(source[0].label, expected)
    np.testing.assert_array_equal(source.instances(0), np.where(expected == 13, 26001, 0))


def test_cityscapes_clips_lead_up_to_the_labelled_frame(tmp_path: Path) -> None:
    source = Cityscapes(cityscapes(tmp_path), "train")
    assert source.frames_before(0) == 2
    several = clips(source, 3)
    assert len(several) == 2
    assert several[1].images[:, 0, 0, 0].tolist() == [17, 18, 19]
    assert (several[1].labels[:2] == 255).all()
    np.testing.assert_array_equal(several[1].labels[2], source[1].label)


def test_cityscapes_without_its_sequences_is_of_stills(tmp_path: Path) -> None:
    root = cityscapes(tmp_path, sequence="leftImg8bit_trainvaltest/leftImg8bit", frames=range(19, 20))
    source = Cityscapes(root, "train")
    assert source[0].image[0, 0, 0] == 19 and source.frames_before(0) == 0
    with pytest.raises(ValueError, match="leftImg8bit/train has no clip of 2 frames; the longest clip has 1"):
        clips(source, 2)


def test_labelled_frames_become_a_recording_with_pauses(tmp_path: Path) -> None:
    frames = SampleFrames(Cityscapes(cityscapes(tmp_path), "train"), 2, rate=10)
    assert len(frames) == 4 and frames.rate == 10
    seen = []
    for frame in frames:
        labelled = frames.label(frame), frames.instances(frame)
        assert [part is None for part in labelled] == [not frame.name.endswith("19")] * 2
        seen.append((frame.index, frame.stamp_ns, frame.name, int(frame.image[0, 0, 0])))
    minute = 60 * 10**9
    assert seen == [
        (0, 0, "aachen_000003_000018", 18),
        (1, 10**8, "aachen_000003_000019", 19),
        (2, 2 * 10**8 + minute, "ulm_000003_000018", 18),
        (3, 3 * 10**8 + minute, "ulm_000003_000019", 19),
    ]
    np.testing.assert_array_equal(frames.label(frame), frames.samples[1].label)
    np.testing.assert_array_equal(frames.instances(frame), frames.samples.instances(1))
    with pytest.raises(ValueError, match="length is 0"):
        SampleFrames(frames.samples, 0)


def test_a_recording_of_a_video_scores_each_frame_once(tmp_path: Path) -> None:
    frames = SampleFrames(labelled_video(tmp_path, 4, {0, 2, 3}), 3)
    labelled = [(frame.name, frames.label(frame) is not None) for frame in frames]
    assert labelled == [
        ("000", True),
        *[("000", False), ("001", False), ("002", True)],
        *[("001", False), ("002", False), ("003", True)],
    ]
    assert all(frames.instances(frame) is None for frame in frames)


def test_what_cityscapes_lacks_is_named_with_its_download(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*gtFine/train: unpack gtFine_trainvaltest\.zip from www"):
        Cityscapes(tmp_path, "train")
    cityscapes(tmp_path)
    with pytest.raises(FileNotFoundError, match="gtFine/val: unpack .* give the split train or val"):
        Cityscapes(tmp_path, "val")
    (tmp_path / "leftImg8bit_sequence" / "train" / "ulm" / "ulm_000003_000019_leftImg8bit.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"ulm_000003_000019_leftImg8bit\.png is missing, the image of .*label"):
        Cityscapes(tmp_path, "train")
    (tmp_path / "leftImg8bit_sequence").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"unpack leftImg8bit_sequence_trainvaltest\.zip"):
        Cityscapes(tmp_path, "train")
    (tmp_path / "elsewhere").rename(tmp_path / "leftImg8bit_sequence")
    for file in (tmp_path / "gtFine" / "train").glob("*/*_labelIds.png"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no CITY/\*_gtFine_labelIds\.png"):
        Cityscapes(tmp_path, "train")


def test_the_ids_of_cityscapes_are_those_of_its_scripts() -> None:
    assert {entry.id: entry.trainId for entry in name2label.values() if entry.trainId not in (255, -1)} == TRAIN_IDS
    for entry in name2label.values():
        if entry.trainId in TRAIN_IDS.values():
            assert CITYSCAPES.names[entry.trainId] == entry.name
            assert tuple(CITYSCAPES.palette[entry.trainId]) == entry.color
            assert (entry.trainId in INSTANCE_SIZES) == entry.hasInstances


# Bags


def message(image: np.ndarray, encoding: str, stamp_ms: int) -> Any:
    types = typestore.types
    time = types["builtin_interfaces/msg/Time"](sec=1, nanosec=stamp_ms * 10**6)
    header = types["std_msgs/msg/Header"](stamp=time, frame_id="camera")
    if encoding == "png":
        return types[COMPRESSED_IMAGE](header=header, format="png", data=cv2.imencode(".png", image)[1].reshape(-1))
    rows = np.pad(image.reshape(HEIGHT, -1), ((0, 0), (0, 3)))  # padded rows, as cameras send them
    return typestore.types[IMAGE](
        header=header,
        height=image.shape[0],
        width=image.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=rows.shape[1],
        data=rows.reshape(-1),
    )


def write_bag(path: Path, messages: list[tuple[str, Any]], storage: StoragePlugin = StoragePlugin.MCAP) -> Path:
    """Write (topic, message) pairs, recorded 1 ms apart."""
    with Writer(path, version=9, storage_plugin=storage) as writer:
        connections: dict[str, Any] = {}
        for index, (topic, content) in enumerate(messages):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, content.__msgtype__, typestore=typestore)
            data = typestore.serialize_cdr(content, content.__msgtype__)
            writer.write(connections[topic], 10**9 + index * 10**6, data)
    return path


def drive(path: Path, storage: StoragePlugin = StoragePlugin.MCAP, encoding: str = "bgr8") -> BagDataset:
    """Five images 100 ms apart, the last after a pause; numbers 1, 2 and 4 are labelled, later than the next image."""
    stamps = [0, 100, 200, 300, 900]
    images = [("/image", message(picture(index), encoding, stamp)) for index, stamp in enumerate(stamps)]
    labels = [("/mask", message(label(index), "mono8", stamps[index])) for index in (1, 2, 4)]
    stray = ("/mask", message(label(9), "mono8", 50))
    order = [*images[:3], labels[0], stray, *images[3:], *labels[1:]]
    return BagDataset(write_bag(path, order, storage), "/image", "/mask", CAMVID)


@pytest.mark.parametrize("storage", list(StoragePlugin), ids=lambda storage: storage.name)
@pytest.mark.parametrize("encoding", ["bgr8", "png"])
def test_a_bag_gives_the_images_whose_stamp_a_label_has(tmp_path: Path, storage: StoragePlugin, encoding: str) -> None:
    bag = drive(tmp_path / "bag", storage, encoding)
    assert [(sample.name, sample.image[0, 0, 0], sample.label[0, 0]) for sample in bag] == [
        ("000001", 1, 1),
        ("000002", 2, 2),
        ("000004", 4, 4),
    ]
    assert bag[0].image.shape == (HEIGHT, WIDTH, 3) and bag[0].label.shape == (HEIGHT, WIDTH)
    assert bag[0].label.flags.writeable


def test_a_bags_clips_do_not_span_a_pause(tmp_path: Path) -> None:
    bag = drive(tmp_path / "bag")
    assert [bag.frames_before(index) for index in range(len(bag))] == [1, 2, 0]
    (clip,) = clips(bag, 3)
    assert clip.images[:, 0, 0, 0].tolist() == [0, 1, 2] and clip.labels[:, 0, 0].tolist() == [VOID, 1, 2]
    patient = BagDataset(bag.path, "/image", "/mask", CAMVID, max_gap=0.6)
    assert patient.frames_before(2) == 4
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clips(patient, 5)))[0].images[:, 0, 0, 0], range(5))


@pytest.mark.parametrize(
    ("labelled", "error"),
    [
        (
            message(picture(0), "bgr8", 0),
            "label map of image 0, on /mask, cannot be read: a label map must be mono8, not",
        ),
        (message(label(0), "png", 0), "a label map must be mono8, not compressed"),
        (message(np.zeros((HEIGHT, 5), np.uint8), "mono8", 0), "cannot be read: it is 5x6, but its image is 8x6"),
        (message(label(12), "mono8", 0), "on /mask, holds class id 12"),
    ],
)
def test_a_label_of_a_bag_that_does_not_fit_is_named(tmp_path: Path, labelled: Any, error: str) -> None:
    path = write_bag(tmp_path / "bag", [("/image", message(picture(0), "bgr8", 0)), ("/mask", labelled)])
    with pytest.raises(ValueError, match=error):
        BagDataset(path, "/image", "/mask", CAMVID)[0]


def test_topics_that_do_not_match_are_told(tmp_path: Path) -> None:
    messages = [("/image", message(picture(0), "bgr8", 0)), ("/mask", message(label(0), "mono8", 7))]
    path = write_bag(tmp_path / "bag", messages)
    with pytest.raises(ValueError, match="none of the 1 label maps of /mask has the stamp of one of the 1 images"):
        BagDataset(path, "/image", "/mask", CAMVID)
    with pytest.raises(ValueError, match="no image topic '/labels': choose one of /image, /mask"):
        BagDataset(path, "/image", "/labels", CAMVID)


def test_names_are_known_without_reading(tmp_path: Path) -> None:
    labelled_video(tmp_path / "camvid", 2, {0, 1})
    for samples in (
        labelled_video(tmp_path / "folder", 3, {0, 2}),
        Cityscapes(cityscapes(tmp_path), "train"),
        drive(tmp_path / "bag"),
        CamVid(tmp_path / "camvid"),
    ):
        for index in range(len(samples)):
            for before in range(samples.frames_before(index) + 1):
                assert samples.name(index, before) == samples.read(index, before).name
