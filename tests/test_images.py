"""Labelled image folders: what is read, and what is refused with which words."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from device_agent.camera import open_camera
from device_agent.config import FolderCamera
from sdk.errors import BadImages
from sdk.images import decode, open_images, read
from sdk.layouts import Layout
from sdk.preprocess import Preprocess


def encoded(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (32, 24), value: int = 90) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(value).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(out, kind)
    return out.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def class_folders(root: Path, n: int = 3) -> Path:
    for label in ("good", "scratch"):
        for i in range(n):
            write(root / label / f"{i}.png", encoded(value=len(label) * 100 + i))
    return root


def declared(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def sixteen_bit() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(out, "PNG")
    return out.getvalue()


def animated() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green")]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    return out.getvalue()


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)


def sixteen_bit_colour_png() -> bytes:
    """Pillow cannot write one, and reads it as 8 bits without a word."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(16 * 3 * 2) for _ in range(16))
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def palette_with_a_hole() -> bytes:
    return saved(Image.fromarray(noise(16, 16, 3)).quantize(8), "PNG", transparency=3)


def two_pages(kind: str) -> bytes:
    pages = [Image.fromarray(noise(16, 16, 3)), Image.new("RGB", (16, 16), "red")]
    return saved(pages[0], kind, save_all=True, append_images=pages[1:])


def test_the_sixteen_bit_colour_picture_is_one_that_pillow_would_cut_down() -> None:
    with Image.open(io.BytesIO(sixteen_bit_colour_png())) as image:
        assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (sixteen_bit_colour_png(), "16-bit pixels of kind RGB"),
        (saved(Image.fromarray(noise(16, 16).astype(np.uint16) * 256), "TIFF"), "I;16"),
        (saved(Image.fromarray(noise(16, 16).astype(np.float32)), "TIFF"), "kind F"),
        (saved(Image.fromarray(noise(16, 16).astype(np.int32)), "TIFF"), "kind I"),
        (saved(Image.fromarray(noise(16, 16, 3)).convert("LAB"), "TIFF"), "LAB"),
        (saved(Image.fromarray(noise(16, 16, 3)).convert("CMYK"), "TIFF"), "CMYK"),
        (saved(Image.fromarray(noise(16, 16, 4), "RGBA"), "PNG"), "transparent"),
        (saved(Image.fromarray(noise(16, 16, 2), "LA"), "PNG"), "transparent"),
        (saved(Image.fromarray(noise(16, 16, 4), "RGBA"), "WEBP"), "transparent"),
        (palette_with_a_hole(), "transparent"),
        (two_pages("PNG"), "several pictures"),
        (two_pages("TIFF"), "several pictures"),
        (declared(2**31 - 1, 2**31 - 1), "too many pixels"),
        (declared(0, 10), "damaged|not a JPEG"),
        (b"BM" + bytes(60), "damaged|not a JPEG"),
        (b"%PDF-1.7", "not a JPEG"),
        (b"PK\x03\x04" + bytes(40), "not a JPEG"),
        (b"\x93NUMPY" + bytes(80), "not a JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not a JPEG"),
        (b"", "empty"),
        (b"not an image at all", "not a JPEG"),
        (encoded("JPEG")[:-200], "damaged"),
        (encoded("PNG")[:-200], "damaged"),
        (encoded("JPEG")[:3], "not a JPEG"),
        (encoded("JPEG", "CMYK"), "CMYK"),
        (sixteen_bit(), "I;16"),
        (encoded(size=(1, 1)), "too few"),
        (encoded(size=(4000, 7)), "too few"),
        (declared(65_000, 65_000), "too many pixels"),
        (declared(10_000, 6_000), "too many"),
        (animated(), "several pictures"),
        (b"GIF89a" + bytes(50), "not a JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG"),
    ],
)
def test_what_is_no_usable_picture_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(BadImages, match=words) as caught:
        decode(data)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
def test_eight_bit_modes_become_colour(mode: str) -> None:
    frame = decode(encoded(mode=mode))
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    assert frame.flags.writeable
    as_pillow_has_it = Image.open(io.BytesIO(encoded(mode=mode))).convert("RGB")
    assert np.array_equal(frame, np.asarray(as_pillow_has_it)[:, :, ::-1])


def test_frames_are_blue_green_red() -> None:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (255, 0, 0)).save(out, "PNG")
    assert decode(out.getvalue())[0, 0].tolist() == [0, 0, 255]


def test_pictures_are_turned_upright() -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (32, 24)).save(out, "JPEG", exif=exif)
    assert decode(out.getvalue()).shape == (32, 24, 3)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_way_a_camera_can_be_held_gives_the_same_picture(turn: int, mode: str) -> None:
    # EXIF 2.3, 4.6.4 A: how the sensor lay. Pillow's numbers of the ways to turn the upright picture so.
    ways = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    upright = Image.fromarray(noise(24, 32, 3)).convert(mode)
    held = upright if turn == 1 else upright.transpose(Image.Transpose(ways[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    frame = decode(saved(held, "PNG", exif=exif))
    assert (frame[:, :, ::-1] == np.asarray(upright.convert("RGB"))).all()


def test_preprocessing_sees_the_turned_picture_on_server_and_device(tmp_path: Path) -> None:
    """Both sides decode by the same function, so a release's tensor and a device's are one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(noise(24, 32, 3)), "PNG", exif=exif)
    preprocess = Preprocess(height=16, width=16)
    on_server = preprocess.apply(read(write(tmp_path / "a.png", data))[1])
    camera = open_camera(FolderCamera(path=tmp_path), "line-1")
    shot = next(camera.shots(threading.Event()))
    assert (preprocess.apply(shot.frame) == on_server).all()


def test_class_folders_give_labels_and_own_groups(tmp_path: Path) -> None:
    images = open_images(class_folders(tmp_path))
    assert images.classes == ["good", "scratch"]
    assert len(set(images.groups)) == 6
    assert not images.has_groups


def test_a_flat_folder_is_the_first_day(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", encoded(value=i))
    assert open_images(tmp_path).classes == ["good"]


def test_an_index_gives_groups_and_columns(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "x" / f"{i}.png", encoded(value=i))
    (tmp_path / "index.csv").write_text(
        "path,label,group,camera\nx/0.png,good,p1,left\nx/1.png,good,p1,right\nx/2.png,pit,,left\n"
    )
    images = open_images(tmp_path)
    assert images.groups == ["p1", "p1", "x/2.png"]
    assert images.images[1].columns == {"camera": "right"}
    assert images.has_groups


def test_bad_files_are_listed_and_the_rest_is_used(tmp_path: Path) -> None:
    class_folders(tmp_path)
    bad = write(tmp_path / "good" / "torn.jpg", encoded("JPEG")[:-200])
    images = open_images(tmp_path)
    assert len(images.images) == 6
    assert [r.path for r in images.refused] == [bad]


def test_the_same_picture_counts_once(tmp_path: Path) -> None:
    class_folders(tmp_path)
    write(tmp_path / "good" / "again.png", (tmp_path / "good" / "0.png").read_bytes())
    images = open_images(tmp_path)
    assert len(images.images) == 6
    assert "same picture as good/0.png" in images.refused[0].reason


def test_one_picture_under_two_labels_is_used_for_neither(tmp_path: Path) -> None:
    class_folders(tmp_path)
    write(tmp_path / "scratch" / "again.png", (tmp_path / "good" / "0.png").read_bytes())
    images = open_images(tmp_path)
    assert sorted(images.labels) == ["good"] * 2 + ["scratch"] * 3
    assert len(images.refused) == 2


def an_index(text: str) -> Callable[[Path], Path]:
    def prepare(root: Path) -> Path:
        write(root / "0.png", encoded())
        (root / "index.csv").write_bytes(text.encode("latin-1"))
        return root

    return prepare


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda root: root / "nowhere", "not a folder"),
        (lambda root: root, "holds no images"),
        (lambda root: write(root / "good" / "a.jpg", b"").parent.parent, "none of 1 images"),
        (lambda root: write(class_folders(root) / "loose.png", encoded()).parent, "beside class folders"),
        (an_index("file,label\n0.png,good\n"), "no column path"),
        (an_index("path,label\n../0.png,good\n"), "leads out of the folder"),
        (an_index("path,label\n/etc/passwd,good\n"), "leads out of the folder"),
        (an_index("path,label\n0.png\n"), "another number of fields"),
        (an_index("path,label\n0.png,good,extra\n"), "another number of fields"),
        (an_index("path,label\n0.png,\n"), "empty path or label"),
        (an_index("path,label\n0.png,gr\xfcn\n"), "line 2: is no UTF-8"),
        (an_index("path,label,\xf6l\n0.png,good,1\n"), "line 1: is no UTF-8"),
        (an_index("path,label\ngr\xfcn.png,good\n"), "line 2: is no UTF-8"),
        (an_index("path,label\nmissing.png,good\n"), "No such file"),
        (an_index(""), "no column label or path"),
        (an_index("path|label\n0.png|good\n"), "no column"),
        (an_index("path,label,label\n0.png,good,pit\n"), "'label' is there twice"),
        (an_index("path,label\n\0.png,good\n"), "leads out of the folder"),
        (an_index("path,label\n" + "x" * 5000 + ",good\n"), "File name too long|leads out"),
        (an_index("path,label\n" + "y" * 200_000 + ",good\n"), "field larger than field limit"),
        (an_index('path,label\n"0.png,good\n'), "unexpected end of data"),
        (an_index("path,label\n.,good\n"), "not a regular file"),
        (an_index("path,label,mask\n0.png,good,/etc/passwd\n"), "its mask '/etc/passwd' leads out"),
        (an_index("path,label\nindex.csv,good\n"), "not a JPEG"),
        (lambda root: write(root / "good" / "a.png", saved(Image.new("RGB", (16, 16)), "PNG")).parent.parent,
         "one colour all over"),
        (lambda root: write(root / "good" / "notes.txt", b"x").parent.parent, "no image by its name"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_used_say_why(tmp_path: Path, prepare: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(BadImages, match=words):
        open_images(prepare(tmp_path))


def test_one_bad_row_does_not_cost_the_others(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / f"{i}.png", encoded(value=i))
    rows = "path,label\n0.png,good\n../1.png,good\n,good\n1.png,\n1.png,pit\n"
    (tmp_path / "index.csv").write_text(rows)
    images = open_images(tmp_path)
    assert images.labels == ["good", "pit"]
    assert [r.reason.partition(":")[0] for r in images.refused] == ["line 3", "line 4", "line 5"]


def test_a_pipe_or_a_circle_of_links_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    class_folders(tmp_path)
    os.mkfifo(tmp_path / "good" / "pipe.png")
    (tmp_path / "good" / "loop.png").symlink_to(tmp_path / "good" / "loop.png")
    (tmp_path / "good" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "good" / "zero.png").symlink_to("/dev/zero")
    reasons = {r.path.name: r.reason for r in open_images(tmp_path).refused}
    assert reasons["pipe.png"] == reasons["zero.png"] == "not a regular file"
    assert "symbolic links" in reasons["loop.png"]
    assert "No such file" in reasons["gone.png"]


def test_a_pipe_that_is_named_as_a_mask_is_not_waited_for(tmp_path: Path) -> None:
    class_folders(tmp_path)
    os.mkfifo(tmp_path / "m.png")
    write(tmp_path / "n.png", b"none")
    (tmp_path / "index.csv").write_text("path,label,mask\ngood/0.png,good,m.png\ngood/1.png,good,n.png\n")
    images = open_images(tmp_path)
    assert [image.mask for image in images.images] == [None, None]
    (note,) = [each for each in images.notes if "masks" in each]
    assert "that of good/0.png is not a regular file" in note
    assert "that of good/1.png is not a JPEG" in note


def test_an_index_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "index.csv")
    with pytest.raises(BadImages, match="not a regular file"):
        open_images(tmp_path, layout=Layout.INDEX)


def test_a_file_of_another_kind_than_its_name_is_used_and_noted(tmp_path: Path) -> None:
    write(class_folders(tmp_path) / "good" / "photo.jpg", encoded("PNG", value=9))
    images = open_images(tmp_path)
    assert len(images.images) == 7
    assert images.notes == ("1 files are not of the kind their names say: good/photo.jpg is PNG.",)


def test_classes_that_differ_in_case_only_are_noted(tmp_path: Path) -> None:
    write(class_folders(tmp_path) / "Good" / "a.png", encoded(value=9))
    assert open_images(tmp_path).notes == ("The classes 'Good' and 'good' are taken as different ones.",)


def test_a_picture_that_is_used_is_seen_once(tmp_path: Path) -> None:
    write(class_folders(tmp_path) / "good" / "torn.png", encoded()[:60])
    seen: list[bytes] = []
    images = open_images(tmp_path, seen=lambda sample, _: seen.append(sample))
    assert seen == [image.sample_id for image in images.images]


def test_a_file_is_delivered_byte_for_byte(tmp_path: Path) -> None:
    data = saved(Image.fromarray(noise(300, 400, 3)), "PNG")
    assert len(data) > 2**18
    assert read(write(tmp_path / "a.png", data))[0] == data


def test_an_empty_file_and_a_folder_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(BadImages, match="the file is empty"):
        read(write(tmp_path / "empty.png", b""))
    with pytest.raises(BadImages, match="not a regular file"):
        read(tmp_path)


def test_reading_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(BadImages, match=r"torn\.png"):
        read(write(tmp_path / "torn.png", encoded()[:60]))
