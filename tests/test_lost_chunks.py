"""A fleet whose disk lost chunks, or altered them: what is told is the way out, and no label is lost on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from sdk.bundle import Bundle
from sdk.fleet.blobs import name_place
from sdk.fleet.lost_chunks import lacking, put_back
from sdk.fleet.precision import precisions_of
from sdk.fleet.store import FleetStore
from sdk.mqtt import Message
from sdk.wire import Topics, Want, encode_json
from tests.builders import make_bundle
from tests.commands import Ended, headway
from tests.simulators import SimDevice
from tests.test_fleet_service import announce, fleet_of
from tests.test_losing import label, tell
from tests.tiny import two_precisions

LABELLED = 3


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bundle(folder / f"r{i}", backbone=f"seed-{i}") for i in range(2)]


@pytest.fixture
def fleet(tmp_path: Path, bundles: list[Bundle]) -> Path:
    """A fleet whose only line gave three labels and does not have their pictures any more."""
    with FleetStore(tmp_path / "fleet") as store:
        store.publish(bundles[0], channel="default")
        line = SimDevice("line-1")
        label(line, bundles[0], *range(LABELLED))
        tell(store, line, 0, bundles[0].space())
    return tmp_path / "fleet"


def publish(capsys: pytest.CaptureFixture[str], fleet: Path, bundle: Bundle, *more: str) -> Ended:
    return headway(capsys, "fleet", "publish", bundle.path, "--dir", fleet, "--accept-licence", "unknown", *more)


def doctor(capsys: pytest.CaptureFixture[str], fleet: Path, *more: object) -> Ended:
    return headway(capsys, "fleet", "doctor", "--dir", fleet, *more)


def lost_chunks(capsys: pytest.CaptureFixture[str], fleet: Path, *more: object) -> list[str]:
    """Return the names of the releases that lack chunks, as the doctor says it."""
    told = json.loads(doctor(capsys, fleet, *more, "--json").out)
    levels = {one["level"] for one in told["findings"] if one["area"] == "chunks"}
    assert levels == {"fault" if told["lacking"] else "good"}
    return [one["name"] for one in told["lacking"]]


def publications(fleet: Path) -> int:
    with FleetStore(fleet) as store, store.read() as ledger:
        return ledger.newest_publication()


def taken(chunks: Path) -> None:
    for chunk in chunks.iterdir():
        chunk.unlink()


def altered(chunks: Path) -> None:
    """Flip a bit of each, so that the size stays."""
    for chunk in chunks.iterdir():
        content = chunk.read_bytes()
        chunk.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def unreadable(chunks: Path) -> None:
    """Let the kernel refuse to read each, as it does where a disk is bad: EIO."""
    for chunk in chunks.iterdir():
        chunk.unlink()
        chunk.symlink_to("/proc/self/mem")


LOST = [taken, altered, shutil.rmtree, unreadable]


@pytest.mark.parametrize("lost", LOST)
def test_publishing_the_bundle_again_puts_all_its_chunks_back(
    fleet: Path, bundles: list[Bundle], lost: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    lost(fleet / "chunks")
    ended = publish(capsys, fleet, bundles[0])
    assert (ended.code, ended.err) == (0, "")
    assert "not compared" not in ended.out
    assert lost_chunks(capsys, fleet) == []
    with FleetStore(fleet) as store:
        live = store.live_set("default")
        assert live is not None
        assert live.devices.count("line-1") == LABELLED


def test_a_chunk_that_nothing_reads_here_is_put_back_too(
    fleet: Path, bundles: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    """The backbone's, which only devices read: the altered one stood for it."""
    with FleetStore(fleet) as store, store.read() as ledger:
        publication = ledger.current("default")
        assert publication is not None
        files = {file.name: file for file in publication.release.descriptor.files}
    backbone = bundles[0].precision().backbone
    (fleet / "chunks" / files[backbone].chunks[0]).write_bytes(b"flipped")
    assert publish(capsys, fleet, bundles[0]).code == 0
    assert lost_chunks(capsys, fleet) == []


@pytest.mark.parametrize("lost", LOST)
def test_what_the_doctor_says_mends_it_and_publishes_nothing(
    fleet: Path, bundles: list[Bundle], lost: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    lost(fleet / "chunks")
    before = publications(fleet)
    ended = doctor(capsys, fleet)
    assert ended.code == 1
    assert f"-> headway fleet doctor --dir {fleet} --mend-from BUNDLE" in ended.out
    assert lost_chunks(capsys, fleet, "--mend-from", bundles[1].path) == [bundles[0].manifest.name]
    mended = doctor(capsys, fleet, "--mend-from", bundles[1].path, "--mend-from", bundles[0].path, "--json")
    told = json.loads(mended.out)
    assert told["lacking"] == []
    assert told["put_back"][str(bundles[0].path)] > 0
    assert publications(fleet) == before


def test_another_bundle_is_refused_while_nobody_can_say_what_labels_would_be_lost(
    fleet: Path, bundles: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    taken(fleet / "chunks")
    before = publications(fleet)
    refused = publish(capsys, fleet, bundles[1])
    assert refused.code == 2
    assert f"headway fleet doctor --dir {fleet} --mend-from BUNDLE" in refused.err
    assert "--uncompared" in refused.err
    assert publications(fleet) == before
    with FleetStore(fleet) as store, store.read() as ledger:
        known = ledger.current("default")
        assert known is not None
        assert {chunk.name for chunk in (fleet / "chunks").iterdir()} <= {*known.release.digests()}
    assert lost_chunks(capsys, fleet, "--mend-from", bundles[0].path) == []
    compared = publish(capsys, fleet, bundles[1])
    assert (compared.code, f"{LABELLED} labels that count now" in compared.err) == (2, True)


def test_where_the_bundle_is_lost_too_another_is_published_when_told_so(
    fleet: Path, bundles: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    taken(fleet / "chunks")
    ended = publish(capsys, fleet, bundles[1], "--uncompared")
    assert ended.code == 0
    assert "not compared with the release before" in ended.out
    assert lost_chunks(capsys, fleet) == []
    again = publish(capsys, fleet, bundles[1], "--uncompared", "--json")
    assert json.loads(again.out)["compared"], "there is no need any more"


def test_a_rollout_that_is_under_way_is_mended_without_an_end_to_it(
    fleet: Path, bundles: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    lost = ("--max-lost-labels", str(LABELLED))
    assert publish(capsys, fleet, bundles[1], "--waves", "1,100%", *lost).code == 0
    taken(fleet / "chunks")
    before = publications(fleet)
    ended = doctor(capsys, fleet, "--json")
    assert {one["name"] for one in json.loads(ended.out)["lacking"]} == {each.manifest.name for each in bundles}
    assert lost_chunks(capsys, fleet, *(word for each in bundles for word in ("--mend-from", each.path))) == []
    assert publications(fleet) == before
    with FleetStore(fleet) as store, store.read() as ledger:
        found = ledger.rollout("default")
        assert found is not None
        assert found[1].open


def test_a_halted_release_gets_its_chunks_back_before_it_is_resumed(
    fleet: Path, bundles: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    lost = ("--max-lost-labels", str(LABELLED))
    assert publish(capsys, fleet, bundles[1], "--waves", "1,100%", *lost).code == 0
    assert headway(capsys, "fleet", "rollout", "halt", "--dir", fleet).code == 0
    taken(fleet / "chunks")
    doctor(capsys, fleet, "--mend-from", bundles[1].path)
    assert headway(capsys, "fleet", "rollout", "resume", "--dir", fleet).code == 0
    with FleetStore(fleet) as store:
        assert [one.name for one in lacking(store)] == [bundles[0].manifest.name]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_mends_its_release_whichever_precision_that_serves(
    tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, fleet = two_precisions(tmp_path / "both"), tmp_path / "fleet"
    assert publish(capsys, fleet, bundle, "--precision", precision).code == 0
    taken(fleet / "chunks")
    assert lost_chunks(capsys, fleet, "--mend-from", bundle.path) == []
    with FleetStore(fleet) as store, store.read() as ledger:
        current = ledger.current("default")
        assert current is not None
        assert precisions_of(store, current)[0] == precision


def test_a_running_service_hands_out_what_is_back(fleet_dir: Path, bundles: list[Bundle]) -> None:
    fleet = fleet_of(fleet_dir, "a")
    chunk = announce(fleet, bundles[0])[1]
    taken(fleet.directory / "chunks")
    want = encode_json(Want(channel="default", chunks=[chunk.topic[-64:]]))
    fleet.broker.now += 10.0
    assert fleet.turn([Message(Topics().up_want("a"), want)]) == []
    with FleetStore(fleet.directory) as other:
        assert put_back(other, bundles[0]) > 0
    fleet.broker.now += 10.0
    assert fleet.turn([Message(Topics().up_want("a"), want)]) == [chunk]


# Where chunks are kept elsewhere


def mended(capsys: pytest.CaptureFixture[str], fleet: Path, bundle: Bundle) -> Ended:
    return doctor(capsys, fleet, "--mend-from", bundle.path)


@pytest.mark.parametrize("mend", [publish, mended])
def test_a_place_that_lost_or_altered_chunks_gets_them_back(
    tmp_path: Path,
    bundles: list[Bundle],
    mend: Callable[[pytest.CaptureFixture[str], Path, Bundle], Ended],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Though the copy on this disk has them: it may be deleted at any time."""
    fleet, files = tmp_path / "fleet", fsspec.filesystem("memory")
    name_place(fleet, f"memory://{tmp_path.name}")
    assert publish(capsys, fleet, bundles[0]).code == 0
    first, *others = sorted(files.find(f"/{tmp_path.name}"))
    files.rm_file(first)
    for path in others:
        content = files.cat_file(path)
        files.pipe_file(path, bytes([content[0] ^ 1]) + content[1:])
    assert lost_chunks(capsys, fleet) == [bundles[0].manifest.name]
    mend(capsys, fleet, bundles[0])
    taken(fleet / "chunks")
    assert lost_chunks(capsys, fleet) == []
