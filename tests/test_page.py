"""The page and its HTTP interface, over a real socket: what is answered is true, what is wrong is refused."""

from __future__ import annotations

import hashlib
import io
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from device_agent.runtime import open_runtime
from sdk.bundle import Bundle
from sdk.errors import ConfigError, LabelError
from sdk.images import sample_id
from sdk.web.server import PageServer
from tests.pages import Device, hex_of, running, wait_for
from tests.tiny import CLASSES, class_id, picture, tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("page") / "bundle")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that the bundle never saw: two of each class and four of a class it does not know."""
    folder = tmp_path_factory.mktemp("page") / "images"
    folder.mkdir(parents=True)
    for name, count in (("good", 2), ("pit", 2), ("scratch", 2), ("rings", 4)):
        for i in range(count):
            (folder / f"{name}-{i}.png").write_bytes(picture(name, 500 + i))
    return folder


@pytest.fixture
def waiting(tmp_path: Path, pictures: Path) -> Iterator[Device]:
    """A device without a release."""
    with running(tmp_path / "data", pictures) as device:
        yield device


def with_release(device: Device, bundle: Bundle, pictures: Path) -> Device:
    device.station.serve(bundle, None, open_runtime(bundle, None))
    device.see(pictures)
    return device


@pytest.fixture
def device(waiting: Device, bundle: Bundle, pictures: Path) -> Device:
    """A device with a release that has seen all pictures."""
    return with_release(waiting, bundle, pictures)


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, pictures: Path) -> Iterator[Device]:
    """The same, for tests that leave it as it was."""
    with running(tmp_path_factory.mktemp("page") / "data", pictures) as device:
        yield with_release(device, bundle, pictures)


def test_the_state_tells_release_head_classes_and_counts(unchanged: Device, bundle: Bundle) -> None:
    state = unchanged.http.get("/api/state").json()
    assert state["device"] == "line-1"
    assert state["release"]["digest"] == bundle.digest()
    assert state["head"]["state"] == "confirmed"
    assert {c["name"]: c["id"] for c in state["classes"]} == {name: class_id(name).hex() for name in CLASSES}
    assert state["frames"] == 10
    assert state["live_set_digest"] == state["head"]["digest"] == bundle.precision().head.live_set_digest


def test_samples_and_pictures_are_what_the_camera_delivered(unchanged: Device) -> None:
    samples = unchanged.http.get("/api/samples", params={"limit": 50}).json()
    assert len(samples) == 10
    assert samples[0]["source"] == "scratch-1.png"
    answer = unchanged.http.get(f"/api/samples/{samples[0]['sample']}/image")
    assert answer.headers["content-type"] == "image/png"
    assert hashlib.sha256(answer.content).hexdigest() == samples[0]["sample"]


def test_the_queue_asks_why_most_important_first(unchanged: Device) -> None:
    queue = unchanged.http.get("/api/queue", params={"limit": 5}).json()
    assert queue
    assert [q["priority"] for q in queue] == sorted((q["priority"] for q in queue), reverse=True)
    assert all(q["reason"] and q["status"] == "queued" for q in queue)


def test_a_label_is_on_disk_when_it_is_answered_and_learned_soon(device: Device) -> None:
    new = device.http.post("/api/classes", json={"name": "rings", "operator": "ann"})
    assert new.status_code == 201
    saved = device.http.post("/api/labels", json={"sample": hex_of("rings", 0), "class_name": "Rings"})
    assert saved.status_code == 201
    assert saved.json()["saved"] is True
    assert saved.json()["class_id"] == new.json()["class_id"]
    assert len(list(device.station.store.log.records())) == saved.json()["seq"]
    wait_for(lambda: device.http.get("/api/state").json()["own_labels"] == 1)
    wait_for(lambda: not device.http.get("/api/state").json()["head"]["busy"])
    state = device.http.get("/api/state").json()
    assert state["label_to_live_ms"] > 0
    assert "rings" in {c["name"] for c in state["score"]["classes"]}
    seen = device.http.get(f"/api/samples/{hex_of('rings', 0)}").json()
    assert (seen["status"], seen["label"]) == ("labelled", "rings")
    answer = device.http.post("/api/inspect", content=picture("rings", 900)).json()
    assert answer["forced_class"] == "rings"


def test_a_label_can_be_withdrawn_as_if_it_had_never_been_learned(device: Device) -> None:
    before = device.http.get("/api/state").json()["live_set_digest"]
    body = {"sample": hex_of("pit", 0), "class_id": class_id("pit").hex()}
    device.http.post("/api/labels", json=body).raise_for_status()
    wait_for(lambda: device.http.get("/api/state").json()["live_set_digest"] != before)
    device.http.post("/api/labels", json={**body, "class_id": None}).raise_for_status()
    wait_for(lambda: device.http.get("/api/state").json()["live_set_digest"] == before)
    assert device.http.get(f"/api/samples/{hex_of('pit', 0)}").json()["label"] is None


@pytest.mark.parametrize("labelled", [False, True])
def test_a_picture_can_be_erased(device: Device, labelled: bool) -> None:
    sample, store = hex_of("pit", 1), device.station.store
    before = device.http.get("/api/state").json()["live_set_digest"]
    if labelled:
        body = {"sample": sample, "class_id": class_id("pit").hex()}
        device.http.post("/api/labels", json=body).raise_for_status()
        wait_for(lambda: device.http.get("/api/state").json()["live_set_digest"] != before)
    there = len(list((store.folder / "images").rglob("*")))
    with pytest.raises(LabelError) if labelled else nullcontext():
        store.samples.erase(bytes.fromhex(sample) if labelled else b"?" * 32)
    assert len(list((store.folder / "images").rglob("*"))) == there
    answer = device.http.delete(f"/api/samples/{sample}")
    assert (answer.status_code, answer.json()) == (200, {"erased": True, "withdrawn": labelled})
    assert len(list((store.folder / "images").rglob("*"))) == there - 1
    assert not list((store.folder / "images").rglob(sample))
    assert device.http.get(f"/api/samples/{sample}/image").status_code == 404
    wait_for(lambda: device.http.get("/api/state").json()["live_set_digest"] == before)
    assert sample not in {each["sample"] for each in device.http.get("/api/queue").json()}
    assert device.http.delete(f"/api/samples/{sample}").status_code == 404


@pytest.mark.parametrize("said", ["nothing", "a label", "a label taken back"])
def test_a_picture_that_nothing_here_knows_is_not_given_and_erased_where_no_label_stands(
    device: Device, said: str
) -> None:
    """Of a store that was begun anew the log may come back, and with it labels of pictures that lie here."""
    sample, store = hex_of("pit", 1), device.station.store
    if said != "nothing":
        body = {"sample": sample, "class_id": class_id("pit").hex()}
        device.http.post("/api/labels", json=body).raise_for_status()
    if said == "a label taken back":
        device.http.post("/api/labels", json={**body, "class_id": None}).raise_for_status()
    with store._db.transaction() as db:
        db.execute("DELETE FROM samples WHERE sample = ?", (bytes.fromhex(sample),))
    for asked in ("image", "heatmap"):
        assert device.http.get(f"/api/samples/{sample}/{asked}").status_code == 404
    assert list((store.folder / "images").rglob(sample))
    answer = device.http.delete(f"/api/samples/{sample}")
    assert answer.status_code == (404 if said == "a label" else 200)
    assert bool(list((store.folder / "images").rglob(sample))) == (said == "a label")


def test_an_inspected_image_is_kept_only_when_asked_to(device: Device) -> None:
    data = picture("scratch", 900)
    answer = device.http.post("/api/inspect", content=data).json()
    assert answer["sample"] == sample_id(data).hex()
    assert set(answer["scores"]) == {class_id(name).hex() for name in CLASSES}
    assert answer["class_id"] == (None if answer["unknown"] else answer["forced_class_id"])
    assert device.http.get(f"/api/samples/{answer['sample']}").status_code == 404
    kept = device.http.post("/api/inspect", params={"keep": "true", "part": "p7"}, content=data).json()
    assert kept["kept"] is True
    assert device.http.get(f"/api/samples/{kept['sample']}").json()["group"] == "line-1/p7"


def test_a_tiff_is_shown_as_png(device: Device) -> None:
    out = io.BytesIO()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(out, "TIFF")
    kept = device.http.post("/api/inspect", params={"keep": "true"}, content=out.getvalue()).json()
    answer = device.http.get(f"/api/samples/{kept['sample']}/image")
    assert answer.headers["content-type"] == "image/png"
    assert answer.content.startswith(b"\x89PNG")


def test_the_heads_of_this_device_are_listed(unchanged: Device) -> None:
    heads = unchanged.http.get("/api/heads").json()
    assert heads[-1]["reason"] == "It came with the release."


def test_the_interface_describes_itself(unchanged: Device) -> None:
    paths = unchanged.http.get("/openapi.json").json()["paths"]
    assert {"/api/state", "/api/labels", "/api/inspect", "/api/queue"} <= set(paths)


def test_without_a_release_the_page_says_so_and_nothing_can_be_labelled(waiting: Device) -> None:
    state = waiting.http.get("/api/state").json()
    assert state["release"] is None
    assert state["head"] is None
    assert waiting.http.get("/").status_code == 200
    for path, body in (
        ("/api/labels", {"sample": "0" * 64, "class_id": "0" * 32}),
        ("/api/classes", {"name": "rings"}),
    ):
        answer = waiting.http.post(path, json=body)
        assert answer.status_code == 503
        assert "headway fleet publish" in answer.json()["hint"]
    assert waiting.http.post("/api/inspect", content=picture("pit", 1)).status_code == 503


SAMPLE = {"sample": hex_of("pit", 0)}


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({**SAMPLE, "class_id": "0" * 32}, 404, "there is no class"),
        ({**SAMPLE, "class_name": "nobody"}, 404, "there is no class 'nobody'"),
        ({"sample": "0" * 64, "class_name": "pit"}, 409, "is not kept here"),
        ({**SAMPLE, "class_name": "pit", "class_id": "0" * 32}, 409, "both class_id and class_name"),
        (SAMPLE, 422, "neither class_id nor class_name"),
        ({**SAMPLE, "class_id": "xyz"}, 422, "class_id: "),
        ({"sample": "../../etc/passwd", "class_name": "pit"}, 422, "sample: "),
        ({**SAMPLE, "class_name": "pit", "operator": "x" * 65}, 422, "operator: "),
        ({**SAMPLE, "class_name": "pit", "extra": 1}, 422, "extra: "),
        ([], 422, ""),
    ],
)
def test_a_label_that_cannot_be_is_refused_and_nothing_stored(
    unchanged: Device, body: object, status: int, error: str
) -> None:
    answer = unchanged.http.post("/api/labels", json=body)
    assert answer.status_code == status
    assert error in answer.json()["error"]
    assert answer.json()["hint"]
    assert list(unchanged.station.store.log.records()) == []


@pytest.mark.parametrize("name", ["good", " Pit ", "unknown", "", "   ", "x" * 65])
def test_a_class_name_that_is_taken_reserved_or_none_is_refused(unchanged: Device, name: str) -> None:
    answer = unchanged.http.post("/api/classes", json={"name": name})
    assert answer.status_code in (409, 422)
    assert answer.json()["hint"]


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a nonsense", picture("pit", 1)[:200]], ids=["empty", "no-image", "truncated"]
)
def test_a_bad_image_is_refused(unchanged: Device, data: bytes) -> None:
    answer = unchanged.http.post("/api/inspect", content=data)
    assert answer.status_code == 422
    assert answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/samples/" + "0" * 64,
        "/api/samples/" + "0" * 64 + "/image",
        "/api/samples/" + "0" * 64 + "/heatmap",
        "/api/nothing",
        "/static/../app.py",
    ],
)
def test_what_is_not_there_is_404(unchanged: Device, path: str) -> None:
    answer = unchanged.http.get(path)
    assert answer.status_code == 404
    assert set(answer.json()) == {"error", "hint"}


def test_limits_are_limits(unchanged: Device) -> None:
    assert unchanged.http.get("/api/samples", params={"limit": 100_000}).status_code == 422
    assert unchanged.http.get("/api/queue", params={"limit": 0}).status_code == 422


def test_other_sites_cannot_read_or_write(device: Device) -> None:
    """DNS rebinding: another host name that points here. Cross-site writing: another page's Origin."""
    assert device.http.get("/api/state", headers={"Host": "evil.example"}).status_code == 403
    body = {"sample": hex_of("pit", 0), "class_name": "pit"}
    answer = device.http.post("/api/labels", json=body, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    inspect = device.http.post("/api/inspect", content=b"x", headers={"Origin": "null"})
    assert inspect.status_code == 403
    own = device.http.post("/api/labels", json=body, headers={"Origin": device.url.rstrip("/")})
    assert own.status_code == 201


def test_the_page_loads_nothing_from_elsewhere(unchanged: Device) -> None:
    answer = unchanged.http.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    scripts = [
        f"/static/{name}.js"
        for name in ("base", "unsent", "walk", "label", "now", "quality", "behind", "settings", "login")
    ]
    for path in ("/", "/label", "/learned", "/quality", "/settings", "/static/page.css", *scripts):
        text = unchanged.http.get(path).raise_for_status().text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text


def test_master_parts_are_told_on_the_page_and_in_the_state(
    tmp_path: Path, bundle: Bundle, pictures: Path
) -> None:
    for name, shown in (("pit", "pit"), ("scratch", "pit"), ("nobody-knows", "pit")):
        (tmp_path / "masters" / name).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "masters" / name / f"{name} {i}.png").write_bytes(picture(shown, 900 + i + 10 * len(name)))
    with running(tmp_path / "data", pictures, masters=tmp_path / "masters") as device:
        assert device.http.get("/api/state").json()["masters"] is None
        with_release(device, bundle, pictures)
        wait_for(lambda: device.http.get("/api/state").json()["masters"] is not None)
        masters = device.http.get("/api/state").json()["masters"]
        text = device.http.get("/learned").text
    assert masters["of"] == 20, "a class that the head does not know is left out"
    assert masters["right"] == 20 - len(masters["wrong"])
    assert {each["wanted"] for each in masters["wrong"]} >= {"scratch"}
    assert masters["strange"] == ["nobody-knows"]
    assert "No class is called nobody-knows: the parts in that folder check nothing." in text
    assert f"{masters['right']} of 20 are told rightly." in text
    assert f"{masters['wrong'][0]['file']} is {masters['wrong'][0]['wanted']}, told as" in text
    assert text.count(", told as ") == 8
    assert f"{len(masters['wrong']) - 8} more are told wrongly." in text


def test_a_port_in_use_is_refused_at_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot be served"):
        PageServer("127.0.0.1", taken.getsockname()[1])


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be served"):
        PageServer("192.0.2.1", 0)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Iterator[Device]:
    """A device whose release gives maps."""
    folder = tmp_path_factory.mktemp("page-maps")
    bundle = tiny_bundle(folder / "bundle", maps=True)
    with running(folder / "data", pictures) as device:
        yield with_release(device, bundle, pictures)


def test_a_heatmap_is_the_picture_with_the_evidence_over_it(mapped: Device) -> None:
    sample = hex_of("pit", 1)
    image, heat, other = (
        np.asarray(
            Image.open(io.BytesIO(mapped.http.get(f"/api/samples/{sample}/{what}").raise_for_status().content))
        )
        for what in ("image", "heatmap", f"heatmap?class_id={class_id('scratch').hex()}")
    )
    assert heat.shape == image.shape
    assert (heat != image).any()
    assert (heat != other).any()


@pytest.mark.parametrize(
    ("query", "status"),
    [("?class_id=" + "0" * 32, 404), ("?against=" + "0" * 32, 404), ("?class_id=pit", 422)],
)
def test_a_heatmap_of_no_class_is_refused(mapped: Device, query: str, status: int) -> None:
    answer = mapped.http.get(f"/api/samples/{hex_of('pit', 1)}/heatmap{query}")
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "hint"}


def test_a_release_without_maps_has_no_heatmap_and_says_why(unchanged: Device) -> None:
    answer = unchanged.http.get(f"/api/samples/{hex_of('pit', 1)}/heatmap")
    assert answer.status_code == 404
    assert "no maps" in answer.json()["error"]
    assert "Export it again" in answer.json()["hint"]


def test_labels_that_do_not_fit_are_listed(device: Device) -> None:
    wrong = hex_of("pit", 1)
    assert device.http.post("/api/labels", json={"sample": wrong, "class_name": "scratch"}).status_code == 201
    assert device.station.require().learner.wait_until_idle(20)
    found = {each["sample"]: each for each in device.http.get("/api/suspects").json()}
    assert (found[wrong]["labelled"], found[wrong]["looks_like"]) == ("scratch", "pit")
    assert found[wrong]["suspicion"] > 0.7  # less likely than not


def test_answers_do_not_wait_for_delayed_acknowledgements() -> None:
    """Nagle's algorithm would hold every answer's body back for 40 ms."""
    server = PageServer("127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", server.port)), server._socket.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    server.stop()


def test_the_outlook_says_what_more_labels_would_give(device: Device) -> None:
    ahead = device.http.get("/api/outlook").raise_for_status().json()
    assert [step["added"] for step in ahead["steps"]] == [5, 10, 20, None, None]
    assert {each["name"] for each in ahead["classes"]} == set(CLASSES)
    assert ahead["helps_most"] == ahead["classes"][0]["name"]
    assert "labels" in ahead["advice"]
    assert device.http.get("/api/outlook").json() == ahead


def test_without_a_release_there_is_no_outlook(tmp_path: Path, pictures: Path) -> None:
    with running(tmp_path / "bare", pictures) as bare:
        answer = bare.http.get("/api/outlook")
        assert answer.status_code == 503
        assert answer.json()["hint"]
