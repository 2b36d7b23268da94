"""The ways of keeping labelled images: what each is taken for, what is said of it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdk.errors import BadImages
from sdk.images import open_images
from sdk.layouts import Layout, detect
from tests.test_images import class_folders, encoded, write

Coco = dict[str, list[dict[str, Any]]]


def coco(root: Path, edit: Callable[[Coco], object] = lambda _: None, name: str = "annotations.json") -> Path:
    """Four images: a scratch, a pit beside a smaller scratch, an unannotated one, and one of a box only."""
    for i in range(4):
        write(root / "images" / f"{i}.png", encoded(value=i))
    tree: Coco = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 32, "height": 24} for i in range(4)],
        "categories": [{"id": 7, "name": "scratch"}, {"id": 9, "name": "pit"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 7, "area": 12.5, "segmentation": [[1, 2]]},
            {"id": 2, "image_id": 1, "category_id": 7, "area": 10, "bbox": [0, 0, 5, 5]},
            {"id": 3, "image_id": 1, "category_id": 9, "area": 11, "bbox": [0, 0, 2, 2]},
            {"id": 4, "image_id": 3, "category_id": 9, "bbox": [0, 0, 4, 4], "iscrowd": 0},
        ],
    }  # fmt: skip
    edit(tree)
    write(root / name, json.dumps(tree).encode())
    return root


def test_coco_labels_by_the_category_of_the_largest_area(tmp_path: Path) -> None:
    images = open_images(coco(tmp_path))
    assert images.layout is Layout.COCO
    assert [(image.path.name, image.label, image.also) for image in images.images] == [
        ("0.png", "scratch", ()),
        ("1.png", "pit", ("scratch",)),
        ("3.png", "pit", ()),
    ]
    assert images.said == "COCO annotations (annotations.json): pit, scratch"
    assert images.notes == ("1 images show several categories; each counts as the one of the largest area.",)


def test_coco_adds_up_the_areas_of_a_category(tmp_path: Path) -> None:
    more = {"id": 5, "image_id": 1, "category_id": 7, "area": 2}
    images = open_images(coco(tmp_path, lambda tree: tree["annotations"].append(more)))
    assert images.images[1].label == "scratch"


def test_coco_polygons_count_by_what_they_enclose(tmp_path: Path) -> None:
    """Some tools write neither area nor bbox."""

    def bare(tree: Coco) -> None:
        tree["annotations"] = [
            {"id": 1, "image_id": 0, "category_id": 7, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]},
            {"id": 2, "image_id": 0, "category_id": 9, "segmentation": [[0, 0, 4, 0, 4, 4], [8, 8, 9, 8, 9, 9]]},
            {"id": 3, "image_id": 1, "category_id": 7, "segmentation": {"counts": [1, 2], "size": [3, 1]}},
            {"id": 4, "image_id": 3, "category_id": 7, "segmentation": [[0, 0, 4]]},
        ]

    images = open_images(coco(tmp_path, bare))
    assert [(image.path.name, image.label, image.also) for image in images.images] == [
        ("0.png", "scratch", ("pit",)),
        ("3.png", "scratch", ()),
    ]
    assert {r.path.name: r.reason for r in images.refused}["1.png"] == "an annotation has no area"


def test_coco_images_without_annotations_are_good_only_when_that_is_said(tmp_path: Path) -> None:
    root = coco(tmp_path)
    (refused,) = open_images(root).refused
    assert refused.path.name == "2.png"
    assert "--unannotated" in refused.reason
    images = open_images(root, unannotated="good")
    assert [image.label for image in images.images] == ["scratch", "pit", "good", "pit"]
    assert not images.refused
    assert "1 images without annotations are taken as good." in images.notes


def in_parts(root: Path) -> Path:
    """Roboflow's way: a JSON within each part."""
    for part in ("train", "valid"):
        coco(root / part, name="_annotations.coco.json")
        for i in range(4):
            write(root / part / f"{i}.png", encoded(value=len(part) * 10 + i))
    return root


@pytest.mark.parametrize(
    ("make", "layout", "said"),
    [
        (class_folders, Layout.FOLDERS, "class folders: good, scratch"),
        (lambda root: coco(root, name="annotations/instances_default.json"), Layout.COCO,
         "COCO annotations (annotations/instances_default.json): good, pit, scratch"),
        (in_parts, Layout.COCO, "COCO annotations (train/_annotations.coco.json, valid/_annotations.coco.json)"),
        (lambda root: class_folders(root / "train").parent, Layout.PARTS, "within train: good, scratch"),
        (lambda root: write(root / "1.png", encoded()).parent, Layout.FLAT, "all are taken as good"),
        (lambda root: write(write(root / "a.png", encoded()).parent / "index.csv",
                            b"path,label,group,lot\na.png,pit,p1,7\n").parent,
         Layout.INDEX, "index.csv, 1 rows, with group, lot"),
    ],
)  # fmt: skip
def test_what_a_folder_is_taken_for_is_said(
    tmp_path: Path, make: Callable[[Path], Path], layout: Layout, said: str
) -> None:
    images = open_images(make(tmp_path), unannotated="good")
    assert images.layout is layout
    assert said in images.said


def mvtec(root: Path) -> Path:
    for i in range(3):
        write(root / "train" / "good" / f"{i:03}.png", encoded(value=i))
    write(root / "test" / "good" / "000.png", encoded(value=10))
    for i in range(4):
        write(root / "test" / "crack" / f"{i:03}.png", encoded(value=20 + i))
    for i in range(2):
        write(root / "ground_truth" / "crack" / f"{i:03}_mask.png", encoded(mode="L"))
    write(root / "ground_truth" / "crack" / "002_mask.png", encoded(mode="L", size=(9, 9)))
    return root


def test_mvtec_folders_give_labels_and_keep_masks(tmp_path: Path) -> None:
    images = open_images(mvtec(tmp_path))
    assert images.layout is Layout.MVTEC
    assert images.said == "MVTec-style folders: train/good, test with crack; 3 masks"
    assert sorted(images.labels) == ["crack"] * 4 + ["good"] * 4
    masks = {image.path.name: image.mask for image in images.images if image.label == "crack"}
    assert masks["000.png"] == tmp_path / "ground_truth" / "crack" / "000_mask.png"
    assert masks["002.png"] is masks["003.png"] is None
    assert any("1 masks cannot be used: that of test/crack/002.png is 9 x 9 pixels" in n for n in images.notes)
    assert any("1 defect images have no mask" in note for note in images.notes)
    assert {image.columns["folder"] for image in images.images} == {"train", "test"}


def test_an_index_keeps_masks_and_passes_over_those_that_do_not_fit(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / f"{i}.png", encoded(value=i))
    write(tmp_path / "m.png", encoded(mode="L"))
    write(tmp_path / "index.csv", b"path,label,mask\n0.png,pit,m.png\n1.png,pit,gone.png\n")
    first, second = open_images(tmp_path).images
    assert (first.mask, second.mask) == (tmp_path / "m.png", None)
    assert "mask" not in first.columns


def test_a_forced_layout_wins(tmp_path: Path) -> None:
    root = coco(class_folders(tmp_path / "set"), name="coco.json")
    assert detect(root) is Layout.COCO
    images = open_images(root, layout=Layout.FOLDERS)
    assert set(images.classes) == {"good", "scratch", "images"}


@pytest.mark.parametrize("layout", [Layout.COCO, Layout.MVTEC, Layout.PARTS, Layout.INDEX])
def test_a_layout_that_the_folder_does_not_have_is_refused(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(BadImages) as caught:
        open_images(class_folders(tmp_path), layout=layout)
    assert caught.value.hint


def edited(**members: object) -> Callable[[Path], Path]:
    return lambda root: coco(root, lambda tree: tree.update(members))  # type: ignore[arg-type]


def spelled(data: bytes) -> Callable[[Path], Path]:
    return lambda root: write(coco(root) / "annotations.json", data).parent


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (edited(categories="none"), "no COCO file"),
        (edited(images=[{"id": 1}]), "missing required field `file_name`"),
        (edited(annotations=[{"image_id": 0, "category_id": "x"}]), "no COCO file"),
        (edited(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "category id 1 is there twice"),
        (edited(images=[{"id": 1, "file_name": "0.png"}] * 2), "image id 1 is there twice"),
        (edited(images=[]), "holds no images"),
        (edited(images=[{"id": 0, "file_name": "../../0.png"}]), "is not in the folder"),
        (edited(images=[{"id": 0, "file_name": "/etc/passwd"}]), "is not in the folder"),
        (edited(images=[{"id": 0, "file_name": "a\0b"}]), "is not in the folder"),
        (edited(images=[{"id": 0, "file_name": "x" * 5000}]), "is not in the folder"),
        (edited(images=[{"id": 0, "file_name": "gone.png"}]), "is not in the folder"),
        (edited(images=[{"id": 0, "file_name": "images\\0.png"}]), "not in the folder; folders are divided by /"),
        (edited(images=[{"id": 0, "file_name": "0.png"}], categories=[]), "category 7, which has no name"),
        (edited(images=[{"id": 0, "file_name": "0.png"}],
                annotations=[{"image_id": 0, "category_id": 7, "area": -4}]), "no area"),
        (edited(images=[{"id": 0, "file_name": "0.png"}],
                annotations=[{"image_id": 0, "category_id": 7, "bbox": [1, 2]}]), "no area"),
        (edited(images=[{"id": 0, "file_name": "0.png"}],
                annotations=[{"image_id": 0, "category_id": c, "area": 4} for c in (7, 9)]), "the same area"),
        (spelled(b""), "no COCO file"),
        (spelled(b"[" * 100_000), "no COCO file"),
        (spelled(b'{"images": [], "annotations": []'), "no COCO file"),
        (spelled('{"images": "größer"}'.encode("latin-1")), "no COCO file"),
        (spelled(b"\xef\xbb\xbf{}"), "no COCO file"),
    ],
)  # fmt: skip
def test_coco_that_cannot_be_used_says_why(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(BadImages) as caught:
        open_images(make(tmp_path), layout=Layout.COCO)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_annotations_of_no_listed_image_are_counted(tmp_path: Path) -> None:
    stray = {"id": 9, "image_id": 99, "category_id": 7, "area": 1}
    images = open_images(coco(tmp_path, lambda tree: tree["annotations"].append(stray)))
    assert "1 annotations belong to no listed image and were passed over." in images.notes


def test_another_json_beside_class_folders_makes_no_coco_set(tmp_path: Path) -> None:
    write(class_folders(tmp_path) / "camera.json", b'{"images": 3}')
    images = open_images(tmp_path)
    assert images.layout is Layout.FOLDERS
    assert [(r.path.name, r.reason) for r in images.refused] == [("camera.json", "no image by its name (.json)")]


def test_train_and_test_are_never_taken_for_classes(tmp_path: Path) -> None:
    class_folders(tmp_path / "train")
    for label in ("good", "scratch"):
        write(tmp_path / "val" / label / "9.png", encoded(value=500 + len(label)))
    images = open_images(tmp_path)
    assert images.classes == ["good", "scratch"]
    assert "train and val are pooled: which of them an image lies in decides nothing." in images.notes


def scattered(root: Path) -> Path:
    """Class folders within train, and images where nothing says what they are."""
    class_folders(root / "train")
    write(root / "docs" / "setup.png", encoded(value=900))
    write(root / "loose.png", encoded(value=901))
    return root


def hidden(root: Path) -> Path:
    class_folders(root)
    write(root / ".pit" / "1.png", encoded(value=900))
    write(root / "good" / ".1.png", encoded(value=901))
    write(root / "good" / "._1.png", b"macOS writes this beside each file on a foreign disk")
    return root


def half_indexed(root: Path) -> Path:
    for i in range(4):
        write(root / "img" / f"{i}.png", encoded(value=i))
    write(root / "index.csv", b"path,label,mask\nimg/0.png,good,\n./img/../img/1.png,pit,img/2.png\n")
    return root


@pytest.mark.parametrize(
    ("make", "notes"),
    [
        (scattered, ["2 images are in no listing and are left out, as docs/setup.png."]),
        (hidden, ["2 images in hidden files or folders are left out, as .pit/1.png."]),
        (half_indexed, ["1 images are in no listing and are left out, as img/3.png."]),
        (lambda root: coco(root, lambda tree: tree["images"].pop()),
         ["1 images are in no listing and are left out, as images/3.png."]),
        (mvtec, []),
        (class_folders, []),
    ],
    ids=["parts", "hidden", "index", "coco", "mvtec", "folders"],
)  # fmt: skip
def test_images_that_nothing_lists_are_told(
    tmp_path: Path, make: Callable[[Path], Path], notes: list[str]
) -> None:
    found = open_images(make(tmp_path))
    assert [note for note in found.notes if "left out" in note] == notes


def test_train_beside_other_folders_is_no_class(tmp_path: Path) -> None:
    images = open_images(scattered(tmp_path))
    assert images.layout is Layout.PARTS
    assert images.classes == ["good", "scratch"]


def test_classes_one_folder_too_deep_are_told(tmp_path: Path) -> None:
    images = open_images(class_folders(tmp_path / "images").parent)
    assert images.classes == ["images"]
    assert images.notes == (
        "All images are of one class, images, and lie in folders within it, good, scratch: if these are the "
        f"classes, name {tmp_path / 'images'}.",
    )


def nested(root: Path, *folders: str) -> Path:
    for number, folder in enumerate(folders):
        write(root / folder / "1.png", encoded(value=800 + number))
    return root


def test_folders_within_class_folders_are_told(tmp_path: Path) -> None:
    images = open_images(nested(class_folders(tmp_path), "surface/deep", "surface/stains", "surface"))
    assert images.classes == ["good", "scratch", "surface"]
    assert images.notes == (
        "Folders within a class folder are no classes of their own: 2 images of surface in deep, stains.",
    )
    parts = open_images(nested(class_folders(tmp_path / "p" / "train").parent, "train/good/x", "val/good/y"))
    assert parts.notes[1:] == (
        "Folders within a class folder are no classes of their own: 2 images of good in x, y.",
    )


def test_the_same_folders_within_several_classes_are_told(tmp_path: Path) -> None:
    images = open_images(nested(tmp_path, "blech/good", "blech/pit", "kachel/good", "kachel/dent"))
    assert images.classes == ["blech", "kachel"]
    assert images.notes[1] == (
        "good lies in several of these, as in blech, kachel: if these are the classes, name one set, such as "
        f"{tmp_path / 'blech'}."
    )


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (("blech/train/good", "blech/test/pit", "kachel/train/good", "kachel/test/pit"),
         "blech, kachel are sets of their own"),
        (("kachel/train/good", "kachel/test/pit"), "kachel is a set of its own"),
        (("kachel/train/good", "kachel/val/good", "good"), "kachel is a set of its own"),
    ],
)  # fmt: skip
def test_sets_are_not_taken_for_classes(tmp_path: Path, folders: tuple[str, ...], says: str) -> None:
    nested(tmp_path, *folders)
    with pytest.raises(BadImages, match=says) as caught:
        open_images(tmp_path)
    assert f"such as {tmp_path / folders[0].split('/')[0]};" in caught.value.hint
    assert open_images(tmp_path, layout=Layout.FOLDERS).classes == sorted({each.split("/")[0] for each in folders})


def test_a_folder_of_indexed_sets_is_refused_and_classes_that_are_divided_into_parts_are_not(
    tmp_path: Path,
) -> None:
    write(nested(tmp_path / "sets", "a/img", "b/img") / "a" / "index.csv", b"path,label\nimg/1.png,good\n")
    with pytest.raises(BadImages, match="a is a set of its own"):
        open_images(tmp_path / "sets")
    assert open_images(nested(tmp_path / "set", "good/train", "good/test", "pit/train")).classes == ["good", "pit"]


def test_a_link_to_a_folder_is_refused_and_a_class_folder_may_be_one(tmp_path: Path) -> None:
    elsewhere = class_folders(tmp_path / "elsewhere")
    root = class_folders(tmp_path / "set")
    (root / "pit").symlink_to(write(elsewhere / "more" / "1.png", encoded(value=900)).parent)
    (root / "good" / "again").symlink_to(root / "good")
    images = open_images(root)
    assert images.classes == ["good", "pit", "scratch"]
    assert [(r.path.name, r.reason) for r in images.refused] == [
        ("again", "a link to a folder, which is not followed")
    ]


def test_an_index_may_name_whole_paths_below_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "set" / "a.png", encoded())
    write(tmp_path / "b.png", encoded(value=1))
    write(tmp_path / "set" / "index.csv", f"path,label\n{tmp_path}/set/a.png,pit\n{tmp_path}/b.png,pit\n".encode())
    monkeypatch.chdir(tmp_path)
    images = open_images(Path("set"))
    assert [(image.path, image.group) for image in images.images] == [(Path("set/a.png"), "a.png")]
    assert [r.reason for r in images.refused] == [
        f"line 3: {str(tmp_path / 'b.png')[:80]!r} leads out of the folder"
    ]


def test_rows_without_a_group_are_told(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", encoded(value=i))
    write(tmp_path / "index.csv", b"path,label,group\n0.png,pit,a\n1.png,pit, \n2.png,good,\n")
    assert "2 rows have no group: each of their images counts as a part of its own." in open_images(tmp_path).notes


def test_paths_from_windows_are_refused_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "img" / "0.png", encoded())
    write(tmp_path / "index.csv", b"path,label\nimg\\0.png,pit\nimg/0.png,pit\n")
    (refused,) = open_images(tmp_path).refused
    assert refused.reason == "line 2: no file 'img\\\\0.png'; folders are divided by /"


def test_a_file_in_the_place_of_the_folder_is_answered_with_its_folder(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    index = root / "index.csv"
    index.write_text("path,label\n")
    with pytest.raises(BadImages, match="is not a folder") as caught:
        open_images(index)
    assert f"Name the folder that holds the images: {root}," in caught.value.hint


APART, ONE = "O\u0308l", "\u00d6l"
"""Oil, as a Mac writes folders and as a keyboard writes."""


def test_a_class_written_in_two_ways_that_look_the_same_is_one(tmp_path: Path) -> None:
    """Two rival classes with one name were made of it, and the note on them showed it twice alike."""
    for i, name in enumerate((APART, ONE, "good")):
        write(tmp_path / "folders" / name / f"{i}.png", encoded(value=i))
        write(tmp_path / "index" / f"{i}.png", encoded(value=i))
    lines = "".join(f"{i}.png,{name}\n" for i, name in enumerate((APART, ONE, "good")))
    write(tmp_path / "index" / "index.csv", f"path,label\n{lines}".encode())

    def rename(tree: Coco) -> None:
        tree["categories"] = [{"id": 7, "name": APART}, {"id": 9, "name": ONE}]

    sets = [tmp_path / "folders", tmp_path / "index", coco(tmp_path / "coco", rename)]
    for images in (open_images(each, unannotated="good") for each in sets):
        assert images.classes == ["good", ONE]
        assert [n for n in images.notes if "written in 2 ways that look the same" in n]
        assert not [n for n in images.notes if "different ones" in n or "without images" in n]


def test_masks_are_found_where_the_class_folder_is_written_otherwise(tmp_path: Path) -> None:
    write(tmp_path / "train" / "good" / "0.png", encoded(value=0))
    write(tmp_path / "test" / APART / "1.png", encoded(value=1))
    write(tmp_path / "ground_truth" / APART / "1_mask.png", encoded(mode="L"))
    images = open_images(tmp_path)
    assert images.classes == ["good", ONE]
    assert [image.mask for image in images.images if image.label == ONE] == [
        tmp_path / "ground_truth" / APART / "1_mask.png"
    ]
    assert not [note for note in images.notes if "ways that look the same" in note]  # there is one way


def test_an_index_that_lies_elsewhere_lists_the_images_instead(tmp_path: Path) -> None:
    """A person corrects labels, and nothing in the set is changed."""
    root = class_folders(tmp_path / "set")
    before = sorted(root.rglob("*"))
    index = write(
        tmp_path / "fixed.csv",
        "\ufeffpath,label,audit_why,group,lot\ngood/1.png,good,,g2,8\ngood/0.png,Öl,looks like Öl,g1,7\n".encode(),
    )
    images = open_images(root, index=index)
    assert [(i.path, i.label, i.group, i.columns) for i in images.images] == [
        (root / "good" / "0.png", "Öl", "g1", {"lot": "7"}),
        (root / "good" / "1.png", "good", "g2", {"lot": "8"}),
    ]
    assert images.said == "fixed.csv, 2 rows, with group, lot"
    assert sorted(root.rglob("*")) == before


def test_an_index_as_a_spreadsheet_saves_it_where_a_comma_is_the_decimal_point(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    index = write(tmp_path / "fixed.csv", b"path;label;lot\r\ngood/0.png;pit;1,5\r\n")
    (image,) = open_images(root, index=index).images
    assert (image.label, image.columns) == ("pit", {"lot": "1,5"})


@pytest.mark.parametrize(
    ("text", "layout", "words", "hint"),
    [
        (b"path,label\n../out.png,pit\n", None, "leads out of the folder", "as they are from the folder on"),
        (b"path,label\nset/good/0.png,pit\n", None, "No such file", "are relative to"),
        (b"path,label\ngood/0.png,pit\n", Layout.FOLDERS, "--format folders", "not both"),
        (None, None, "there is no such file", "path,label"),
    ],
    ids=["out", "elsewhere", "format", "gone"],
)
def test_an_index_that_cannot_be_one_of_the_folder_is_refused(
    tmp_path: Path, text: bytes | None, layout: Layout | None, words: str, hint: str
) -> None:
    root = class_folders(tmp_path / "set")
    write(tmp_path / "out.png", encoded())
    if text is not None:
        write(tmp_path / "fixed.csv", text)
    with pytest.raises(BadImages, match=words) as caught:
        open_images(root, layout=layout, index=tmp_path / "fixed.csv")
    assert hint in caught.value.hint
