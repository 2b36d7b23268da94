"""site.toml is read whole, or refused in one line that names file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agent.config import FolderCamera, OpenCvCamera, Site
from device_agent.site_file import load_site, parse_site
from device_agent.site_template import TEMPLATE
from sdk.errors import ConfigError

VIDEO = 'device = "line-1"\n[camera]\nkind = "video"\npath = "v.mp4"\n'
LEAST = 'device = "line-1"\n[camera]\nkind = "folder"\npath = "images"\n'


def site_of(text: str, folder: Path = Path("/plant")) -> Site:
    return parse_site(text, folder / "site.toml")


def test_least_settings_get_every_default() -> None:
    site = site_of(LEAST)
    assert site.device == "line-1"
    assert site.page.host == "127.0.0.1"
    assert site.mqtt is None
    assert site.bundle is None
    assert isinstance(site.camera, FolderCamera)
    assert site.camera.burst_gap_s == 2.0


def test_paths_are_relative_to_the_file() -> None:
    site = site_of('bundle = "b"\ndata_dir = "/var/lib/headway"\n' + LEAST)
    assert site.bundle == Path("/plant/b")
    assert site.data_dir == Path("/var/lib/headway")
    assert isinstance(site.camera, FolderCamera)
    assert site.camera.path == Path("/plant/images")


def test_default_data_folder_lies_beside_the_file() -> None:
    assert site_of(LEAST).data_dir == Path("/plant/headway-data")


def test_the_template_says_exactly_the_defaults() -> None:
    text = TEMPLATE.replace("rate_fps = 1.0", "rate_fps = 0.0")
    assert site_of(text) == site_of(LEAST)


def test_every_line_commented_out_in_the_template_is_valid_too() -> None:
    lines = TEMPLATE.splitlines()
    live = lines.index("# [camera]                    # a live camera instead")
    opencv = [line.removeprefix("# ") for line in lines[live : live + 6]]
    mqtt = next(i for i, line in enumerate(lines) if line.startswith("# [mqtt]"))
    broker = [line.removeprefix("# ") for line in lines[mqtt : mqtt + 18]]
    top = [line.removeprefix("# ") for line in lines if line.startswith(("# bundle", "# precision"))]
    site = site_of("\n".join(['device = "a"', *top, *opencv, *broker]))
    assert isinstance(site.camera, OpenCvCamera)
    assert site.camera.index == 0
    assert site.mqtt is not None
    assert site.mqtt.password_file == Path("/plant/mqtt-password")
    assert site.chunks is not None
    assert site.trust is not None
    assert site.trust.root == Path("/plant/root.json")
    assert site.precision == "int8"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (LEAST + "[page]\nprot = 1\n", "unknown key 'prot' in [page]", "Did you mean 'port'?"),
        ("devise = 'a'\n" + LEAST, "unknown key 'devise'", "Did you mean 'device'?"),
        (LEAST + "retry_s = 1.0\n", "unknown key 'retry_s' in [camera]", "belongs in [camera (opencv)]"),
        ("port = 1\n" + LEAST, "unknown key 'port'", "belongs in [page]"),
        (
            LEAST + "[page]\nzzz = 1\n",
            "unknown key 'zzz'",
            "Known here: cert_file, host, key_file, plain_http, port, public_url.",
        ),
        (LEAST + "[page]\npublic_url = 'http://line-1.plant'\n", "public_url is https://NAME", "docs/agent.md"),
        (LEAST + "[page]\npublic_url = 'https://line-1.plant/a'\n", "without a path", "docs/agent.md"),
        (
            LEAST + "[page]\nhost = '0.0.0.0'\npublic_url = 'https://line-1.plant'\n",
            "leave host at 127.0.0.1",
            "docs/agent.md",
        ),
        (LEAST + "[page]\nport = 'x'\n", "page.port: expected int, got str", "docs/agent.md"),
        (LEAST + "[page]\nport = 70000\n", "page.port: expected int <= 65535", "docs/agent.md"),
        (LEAST + "rate_fps = -1\n", "camera.rate_fps: expected float >= 0.0", "headway agent init"),
        (LEAST + "[[output]]\nkind = 'htp'\n", "output[0].kind: invalid value 'htp'", "http, modbus"),
        (LEAST.replace("line-1", "Line 1"), "device: expected str matching", "small letters"),
        (LEAST.replace("folder", "webcam"), "camera.kind: invalid value 'webcam'", "folder, video, watch"),
        (LEAST.replace('"images"', "7"), "camera.path: expected a path in quotes", "docs/agent.md"),
        ('device = "a"\n', "camera is missing", "kind is one of"),
        ('device = "a"\n[camera]\nkind = "folder"\n', "path is missing in [camera]", "docs/agent.md"),
        ('device = "a"\n[camera]\nkind = "opencv"\n', "camera: give either index or url", "docs/agent.md"),
        ('precision = "int4"\n' + LEAST, "precision: invalid enum value 'int4'", "docs/agent.md"),
        (LEAST + "[mqtt]\nport = 1883\n", "host is missing in [mqtt]", "docs/agent.md"),
        (LEAST + "[camera.recipe]\ntile = 224\n", "unknown key 'tile' in [camera.recipe]", "'tile_px'"),
        (LEAST + "[camera.picture]\nblack = 0\n", "unknown key 'black' in [camera.picture]", "'black_share'"),
        (LEAST + "[camera.recipe]\nregion = [0, 0, 9]\n", "camera.recipe.region: expected array of", "docs/"),
        (LEAST + "[camera.recipe]\ntile_px = 4\n", "camera.recipe.tile_px: expected int >= 8", "docs/agent.md"),
        (LEAST + "[part]\ngood = []\n", "part.good: expected array of", "docs/agent.md"),
        (LEAST + "[part]\ndecide_within_ms = 0\n", "part.decide_within_ms: expected float >= 1.0", "docs/"),
        (LEAST + "[trigger]\ntopic = 'a'\n", "trigger.topic needs an [mqtt] table", "docs/agent.md"),
        (VIDEO + "[part]\nframes = 2\n", "part.frames above 1 needs part ids", "docs/agent.md"),
        (
            "device = 'a'\n[[camera]]\nkind = 'opencv'\nindex = 0\n[[camera]]\nkind = 'watch'\npath = 'x'\n",
            "several cameras need a [trigger]",
            "docs/agent.md",
        ),
        ("camera = []\n" + 'device = "a"\n', "a station has a camera", "docs/agent.md"),
        ('device = "a"\n[[camera]]\nkind = "folder"\npth = "x"\n', "unknown key 'pth' in [camera]", "'path'"),
        ("device = line-1\n", "site.toml: ", "Strings stand in quotes"),
    ],
)
def test_wrong_settings_are_refused_in_one_line_with_the_key(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        site_of(text)
    assert message in str(refusal.value)
    assert str(refusal.value).startswith("/plant/site.toml: ")
    assert "\n" not in str(refusal.value)
    assert hint in refusal.value.hint


def test_a_missing_file_points_to_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_site(tmp_path / "site.toml")
    assert "headway agent init" in refusal.value.hint


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_site(file)


def test_a_station_may_have_several_cameras_each_with_its_recipe() -> None:
    site = site_of(
        'device = "line-1"\n[[camera]]\nname = "top"\nkind = "opencv"\nindex = 0\n[camera.recipe]\n'
        'region = [0, 0, 800, 600]\nmask = "top.png"\ntile_px = 224\n[[camera]]\nkind = "opencv"\nindex = 1\n'
        "[camera.picture]\nfrozen_after = 0\n[trigger]\n[part]\nframes = 2\n"
    )
    top, other = site.cameras
    assert top.name == "top"
    assert top.recipe.region == (0, 0, 800, 600)
    assert top.recipe.mask == Path("/plant/top.png")
    assert other.recipe.tile_px is None
    assert other.picture.frozen_after == 0
    assert site.trigger is not None


@pytest.mark.parametrize("kind", ["watch", "gstreamer"])
def test_other_cameras_of_the_template_are_valid_too(kind: str) -> None:
    lines = TEMPLATE.splitlines()
    start = lines.index(f'# kind = "{kind}"')
    end = next(i for i, line in enumerate(lines[start:], start) if not line)
    table = [line.removeprefix("# ") for line in lines[start:end]]
    assert type(site_of("\n".join(['device = "a"', "[camera]", *table])).camera).__name__.lower().startswith(kind)


def test_recipe_picture_and_trigger_of_the_template_are_valid_too() -> None:
    lines = TEMPLATE.splitlines()
    begin = lines.index('kind = "folder"               # folder, video, watch, opencv, gstreamer, or a plug-in\'s')
    camera = [line for line in lines[begin - 1 : begin + 6] if line]
    tables = []
    for name in ("[camera.recipe]", "[camera.picture]", "[trigger]", "[mqtt]"):
        start = next(i for i, line in enumerate(lines) if line.startswith(f"# {name}"))
        end = next(i for i, line in enumerate(lines[start:], start) if not line)
        tables += [line.removeprefix("# ") for line in lines[start:end]]
    site = site_of("\n".join(['device = "a"', *camera, *tables]))
    assert site.cameras[0].recipe.tile_px == 448
    assert site.cameras[0].picture.frozen_after == 10
    assert site.trigger is not None
    assert site.trigger.topic == "line-1/part"


def test_the_whole_station_of_the_guide_is_valid() -> None:
    guide = Path(__file__).parent.parent / "docs" / "agent.md"
    text = guide.read_text(encoding="utf-8").split("### A whole station")[1]
    site = site_of(text.split("```toml\n")[1].split("```")[0])
    assert [camera.name for camera in site.cameras] == ["top", "side"]
    assert len(site.output) == 2
