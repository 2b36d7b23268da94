"""Releases on a stick: real packs, real devices that never see a network, and sticks that somebody has been at."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_agent.agent import Agent
from device_agent.config import Site, TrustTable
from device_agent.runtime import open_runtime
from device_agent.stick import BRING_AGAIN, INBOX_NAME, ORDER_NAME, Inbox, bring, is_ordered, refusal
from device_agent.store import Store
from device_agent.update import Updater
from sdk.bundle import Bundle
from sdk.chunks import TRY_AGAIN, ChunkStore
from sdk.durable import write_whole
from sdk.errors import BadFormat, BadSignature, BundleError, StoreFull, Unreadable
from sdk.fetch import ChunkFetcher
from sdk.mqtt import MqttSettings
from sdk.release import Release
from sdk.stick import CHUNKS_NAME, INDEX_NAME, TRUST_NAME, Stick, StickIndex, copy_chunks, pack
from sdk.wire import Desired, ReleaseRef, UpdateState, encode_json
from tests.commands import headway
from tests.disks import fill, small
from tests.processes import Doomed
from tests.simulators import same_files, wait_for
from tests.test_agent import images, running, site_of
from tests.tiny import tiny_bundle
from tests.trust_builders import files_of, message_of

__all__ = ["images", "small"]

MANY = 12
"""Chunks that a tiny release has at least."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        name: tiny_bundle(folder / name, name=name, backbone_seed=seed)
        for seed, name in enumerate(("old", "new", "newer"))
    }


@pytest.fixture
def stick(tmp_path: Path, bundles: dict[str, Bundle]) -> Path:
    """An unsigned stick with the old release."""
    pack(bundles["old"], tmp_path / "stick", channel="default", trust=None)
    return tmp_path / "stick"


def some_chunk(stick: Path) -> Path:
    """Return a chunk that is not the descriptor."""
    with Stick(stick) as opened:
        return stick / CHUNKS_NAME / opened.release().digests()[3]


def descriptor(stick: Path) -> Path:
    with Stick(stick) as opened:
        return stick / CHUNKS_NAME / opened.index.release.release_id


# -- the medium


def test_what_is_packed_comes_off_the_stick_the_same(
    tmp_path: Path, stick: Path, bundles: dict[str, Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    assert {entry.name for entry in stick.iterdir()} == {INDEX_NAME, CHUNKS_NAME}
    ended = headway(capsys, "bundle", "unpack", stick, tmp_path / "out")
    assert ended.code == 0
    assert "who signed it was not checked" in ended.out
    assert same_files(bundles["old"].path, tmp_path / "out")


def test_packing_again_writes_what_is_new_and_leaves_no_old_chunks(
    stick: Path, bundles: dict[str, Bundle]
) -> None:
    (stick / "holiday.jpg").write_bytes(b"somebody's own")
    assert pack(bundles["old"], stick, channel="default", trust=None).new_bytes == 0
    (some_chunk(stick)).write_bytes(b"a bit has flipped on the shelf")
    assert pack(bundles["old"], stick, channel="default", trust=None).new_bytes > 0
    pack(bundles["new"], stick, channel="default", trust=None)
    with Stick(stick) as opened:
        assert {entry.name for entry in (stick / CHUNKS_NAME).iterdir()} == set(opened.release().digests())
    assert (stick / "holiday.jpg").exists()


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def link(file: Path) -> None:
    """Let a name lead to the very bytes that belong there, elsewhere."""
    away = file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(away)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def grow(file: Path) -> None:
    os.truncate(file, 3 * 1024**3)  # sparse: nothing of it may be read


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def swap(stick: Path) -> None:
    shutil.copy(descriptor(stick), some_chunk(stick))


def name_outside(stick: Path) -> None:
    index = stick / INDEX_NAME
    text = index.read_text()
    with Stick(stick) as opened:
        index.write_text(text.replace(opened.index.release.release_id, "../../../../etc/passwd".ljust(64, "0")))


HARMS: dict[str, tuple[Callable[[Path], object], type[BundleError], str]] = {
    "chunk altered": (lambda s: flip(some_chunk(s)), BadSignature, "was changed or cut short"),
    "chunk truncated": (lambda s: cut(some_chunk(s)), BadSignature, "was changed or cut short"),
    "chunk missing": (lambda s: some_chunk(s).unlink(), Unreadable, "cannot be read"),
    "chunk a link": (lambda s: link(some_chunk(s)), BadFormat, "is a link"),
    "chunk a pipe": (lambda s: pipe(some_chunk(s)), BadFormat, "is no file of at most"),
    "chunk without end": (lambda s: device(some_chunk(s)), BadFormat, "is a link"),
    "chunk of 3 GB": (lambda s: grow(some_chunk(s)), BadFormat, "is no file of at most"),
    "chunk a folder": (lambda s: folder(some_chunk(s)), BadFormat, "is no file"),
    "descriptor altered": (lambda s: flip(descriptor(s)), BadSignature, "was changed or cut short"),
    "two chunks swapped": (swap, BadSignature, "was changed or cut short"),
    "chunks a link": (lambda s: link(s / CHUNKS_NAME), BadFormat, "is a link"),
    "no chunks": (lambda s: shutil.rmtree(s / CHUNKS_NAME), Unreadable, "cannot be read"),
    "index a link": (lambda s: link(s / INDEX_NAME), BadFormat, "is a link"),
    "index missing": (lambda s: (s / INDEX_NAME).unlink(), Unreadable, "cannot be read"),
    "index empty": (lambda s: (s / INDEX_NAME).write_bytes(b""), BadFormat, "not a StickIndex"),
    "index of 3 GB": (lambda s: grow(s / INDEX_NAME), BadFormat, "is no file of at most"),
    "index names a path": (name_outside, BadFormat, "not a StickIndex"),
    "trust a link": (lambda s: (s / TRUST_NAME).symlink_to("/etc/passwd"), BadFormat, "is a link"),
    "nothing there": (shutil.rmtree, Unreadable, "cannot be read"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_stick_that_somebody_has_been_at_orders_nothing(tmp_path: Path, stick: Path, harm: str) -> None:
    do, expected, words = HARMS[harm]
    data = tmp_path / "data"
    do(stick)
    with pytest.raises(expected, match=words), Stick(stick) as opened:
        bring(opened, data, "default")
    assert not is_ordered(data)
    kept = data / INBOX_NAME / CHUNKS_NAME
    for chunk in kept.iterdir() if kept.exists() else []:  # and what was copied is what it is called
        assert ChunkStore(kept).get(chunk.name) is not None


def test_the_stick_is_pulled_out_while_it_is_read(tmp_path: Path, stick: Path) -> None:
    """Nothing is ordered; plugged in again, it goes on from there."""
    data, away = tmp_path / "data", tmp_path / "in the pocket"

    def pull(done: int, _total: int) -> None:
        if done == 3:
            (stick / CHUNKS_NAME).rename(away)
            shutil.copytree(away, tmp_path / "copy")
            shutil.rmtree(away)

    with pytest.raises(Unreadable, match="cannot be read"), Stick(stick) as opened:
        bring(opened, data, "default", pull)
    assert not is_ordered(data)
    copied = {file.name for file in (data / INBOX_NAME / CHUNKS_NAME).iterdir()}
    assert len(copied) == 3
    shutil.copytree(tmp_path / "copy", stick / CHUNKS_NAME)
    with Stick(stick) as opened:
        bring(opened, data, "default")
    assert is_ordered(data)


class StickOf:
    """What a stick's release has."""

    def __init__(self, stick: Path) -> None:
        with Stick(stick) as opened:
            self.digests = opened.release().digests()
            self.size_bytes = opened.index.release.size_bytes


def bring_and_tell(stick: Path, data: Path, tell: Callable[[int], None]) -> None:
    with Stick(stick) as opened:
        bring(opened, data, "default", lambda done, _total: tell(done))
    tell(-1)


@pytest.mark.parametrize("after", [0, 2, 5])
def test_a_device_that_dies_while_it_copies_has_ordered_nothing(tmp_path: Path, stick: Path, after: int) -> None:
    data = tmp_path / "data"
    doomed = Doomed(bring_and_tell, stick, data)
    while doomed.told() < after:
        pass
    told = doomed.kill()
    assert is_ordered(data) <= (-1 in told or len(told) > 0)
    with Stick(stick) as opened:
        bring(opened, data, "default")
        for digest in opened.release().digests():
            assert ChunkStore(data / INBOX_NAME / CHUNKS_NAME).get(digest) is not None


def test_a_full_stick_is_refused_and_keeps_what_it_had(small: Path, bundles: dict[str, Bundle]) -> None:
    stick = small / "headway"
    pack(bundles["old"], stick, channel="default", trust=None)
    hog = fill(small)
    with pytest.raises(StoreFull, match="no space left") as refused:
        pack(bundles["new"], stick, channel="default", trust=None)
    assert refused.value.hint == TRY_AGAIN
    with Stick(stick) as opened:
        assert opened.index.release.name == "old"
        for digest in opened.release().digests():
            opened.get(digest)
    hog.unlink()
    pack(bundles["new"], stick, channel="default", trust=None)


def test_a_full_device_refuses_before_it_copies(small: Path, stick: Path) -> None:
    fill(small)
    with pytest.raises(StoreFull), Stick(stick) as opened:
        bring(opened, small / "data", "default")
    assert not is_ordered(small / "data")


def leave(folder: Path, free_bytes: int) -> Path:
    """Take all the room of a small disk but so much."""
    hog = folder / "others"
    hog.write_bytes(bytes(shutil.disk_usage(folder).free - free_bytes))
    return hog


def fill_at(done: int, folder: Path) -> None:
    if done == 2:
        fill(folder)


def test_a_device_that_fills_up_meanwhile_keeps_nothing_of_the_stick(small: Path, stick: Path) -> None:
    """What was copied would have the labels' room, and a release that may never be brought again."""
    data = small / "data"
    with pytest.raises(StoreFull, match="no space left") as refused:
        bring_and_tell(stick, data, lambda done: fill_at(done, small))
    assert refused.value.hint == BRING_AGAIN
    assert (list((data / INBOX_NAME).iterdir()), is_ordered(data)) == ([], False)
    (small / "others").unlink()
    bring_and_tell(stick, data, lambda _: None)
    assert is_ordered(data)


def test_a_stick_that_was_pulled_out_wants_room_for_the_rest_alone(small: Path, stick: Path) -> None:
    data, size = small / "data", StickOf(stick).size_bytes
    last = stick / CHUNKS_NAME / StickOf(stick).digests[-1]
    chunk = last.read_bytes()
    last.unlink()
    with pytest.raises(Unreadable):
        bring_and_tell(stick, data, lambda _: None)
    last.write_bytes(chunk)
    hog = leave(small, size + size // 2)
    bring_and_tell(stick, data, lambda _: None)
    assert is_ordered(data)
    shutil.rmtree(data)
    hog.unlink()
    leave(small, size + size // 2)
    with pytest.raises(StoreFull, match=f"needs {2 * size} bytes"):
        bring_and_tell(stick, data, lambda _: None)


def test_a_bundle_that_does_not_fit_is_told_so_and_leaves_no_half(
    small: Path, stick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hog = leave(small, StickOf(stick).size_bytes // 2)
    full = headway(capsys, "bundle", "unpack", stick, small / "out")
    assert full.code == 2
    assert "no space left" in full.err
    assert TRY_AGAIN in full.err
    assert list(small.iterdir()) == [hog]
    hog.unlink()
    assert headway(capsys, "bundle", "unpack", stick, small / "out").code == 0


def test_copying_onto_itself_costs_nothing(tmp_path: Path, stick: Path) -> None:
    store = ChunkStore(tmp_path / "store")
    with Stick(stick) as opened:
        copy_chunks(opened, store)
        (stick / CHUNKS_NAME / opened.release().digests()[3]).unlink()
        assert isinstance(copy_chunks(opened, store), Release)  # it was not asked for again


# -- a fleet with keys, and devices that never see it


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, bundles: dict[str, Bundle]) -> Path:
    """Sticks as they were packed after each publication: `old`, `new`, and `foreign` by another fleet."""
    folder = tmp_path_factory.mktemp("signed")

    def run(*words: object) -> None:
        from sdk.cli import main

        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert not ended.value.code

    for fleet, releases in (("fleet", ("old", "new")), ("foreign", ("newer",))):
        keys = folder / f"{fleet}-keys"
        run("fleet", "keys", "init", "--dir", folder / fleet, "--keys", keys, "--no-passphrase")
        for name in releases:
            run("fleet", "publish", bundles[name].path, "--dir", folder / fleet, "--keys", keys)
            run("bundle", "pack", bundles[name].path, folder / name, "--fleet", folder / fleet)
    run("bundle", "pack", bundles["newer"].path, folder / "unsigned")
    run("bundle", "pack", bundles["old"].path, folder / "elsewhere", "--channel", "casting")
    # A release of a thief's beside the fleet's own metadata.
    shutil.copytree(folder / "unsigned", folder / "mixed")
    shutil.copy(folder / "new" / TRUST_NAME, folder / "mixed" / TRUST_NAME)
    # The fleet's own metadata, altered.
    shutil.copytree(folder / "new", folder / "forged")
    files = files_of((folder / "forged" / TRUST_NAME).read_bytes())
    targets = files["targets.json"].replace(b'"name":"old"', b'"name":"odd"')
    assert targets != files["targets.json"]
    (folder / "forged" / TRUST_NAME).write_bytes(message_of(files | {"targets.json": targets}))
    return folder


def site_alone(images: Path, root: Path | None) -> Site:
    return site_of(images, None, loop=True, rate_fps=200.0, trust=None if root is None else TrustTable(root=root))


def write_site(images: Path, root: Path | None) -> Path:
    file = images.parent / "site.toml"
    trust = "" if root is None else f'[trust]\nroot = "{root}"\n'
    file.write_text(
        f'device = "line-1"\ndata_dir = "{images.parent / "data"}"\n'
        f'[camera]\nkind = "folder"\npath = "{images}"\n{trust}'
    )
    return file


def release_of(agent: Agent) -> str | None:
    release = agent.state().release
    return None if release is None else release.name


def test_a_device_that_never_saw_a_network_takes_what_its_fleet_signed_and_nothing_else(
    images: Path, signed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = signed / "fleet" / "trust" / "1.root.json"
    site, data = write_site(images, root), images.parent / "data"
    with Agent(site_alone(images, root)) as agent, running(agent):
        for name, why in (
            ("unsigned", "is not signed for channel default"),
            ("newer", "signed metadata does not hold"),
            ("forged", "signed metadata does not hold"),
            ("mixed", "is not signed for channel default"),
            ("elsewhere", "this device is on default"),
            ("nowhere", "cannot be read"),
        ):
            ended = headway(capsys, "agent", "update", site, "--from", signed / name)
            assert (ended.code, why in ended.err) == (2, True), (name, ended)
            assert release_of(agent) is None
        for name in ("old", "new"):
            ended = headway(capsys, "agent", "update", site, "--from", signed / name)
            assert ended.code == 0, ended
            assert ended.out.splitlines()[-1] == "committed"
            assert release_of(agent) == name
            assert agent.state().trust == "signed"
        # The stick of last year: its metadata is older than what was seen, its release than what was taken.
        ended = headway(capsys, "agent", "update", site, "--from", signed / "old")
        assert ended.code == 2
        assert "has version 1, and 2 was taken before" in ended.err
        # And the same stick again changes nothing.
        ended = headway(capsys, "agent", "update", site, "--from", signed / "new")
        assert (ended.code, ended.out.splitlines()[-1]) == (0, "committed")
        assert release_of(agent) == "new"
        assert len(agent.store.updates.newest()) == 2
        wait_for(lambda: not (data / INBOX_NAME / CHUNKS_NAME).exists(), what="the inbox to be cleared")
    # What was seen outlives the agent.
    assert headway(capsys, "agent", "update", site, "--from", signed / "old").code == 0
    with Agent(site_alone(images, root)) as agent, running(agent):
        wait_for(lambda: not is_ordered(data), what="the order to be looked at")
        told = refusal(data)
        assert told is not None
        assert "has version 1, and 2 was taken before" in told.reason
        assert release_of(agent) == "new"


def test_a_device_without_a_root_takes_the_old_stick(
    images: Path, signed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: with the protection removed, the replayed stick is taken."""
    site = write_site(images, None)
    with Agent(site_alone(images, None)) as agent, running(agent):
        for name in ("new", "old"):
            assert headway(capsys, "agent", "update", site, "--from", signed / name).code == 0
            assert release_of(agent) == name


def test_an_agent_that_does_not_run_takes_it_at_its_next_start(
    images: Path, signed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a chunk that a power cut tore in the data folder is asked for, not served."""
    root = signed / "fleet" / "trust" / "1.root.json"
    site = write_site(images, root)
    ended = headway(capsys, "agent", "update", site, "--from", signed / "old")
    assert ended.code == 0
    assert "no agent runs here" in ended.out
    inbox = images.parent / "data" / INBOX_NAME
    cut(max((inbox / CHUNKS_NAME).iterdir(), key=lambda file: file.stat().st_size))
    with Agent(site_alone(images, root)) as agent, running(agent):
        wait_for(lambda: any("are damaged" in fault for fault in agent.state().faults), what="the damage told")
        assert release_of(agent) is None
        assert (inbox / ORDER_NAME).exists()
        assert headway(capsys, "agent", "update", site, "--from", signed / "old").code == 0
        assert release_of(agent) == "old"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["pack", "newer", "STICK", "--fleet", "fleet"], "is not signed for channel default"),
        (
            ["pack", "old", "STICK", "--fleet", "fleet", "--channel", "casting"],
            "is not signed for channel casting",
        ),
        (["pack", "old", "STICK", "--fleet", "."], "holds no keys"),
        (["unpack", "unsigned", "STICK", "--root", "fleet/trust/1.root.json"], "has no signed metadata"),
        (["unpack", "newer", "STICK", "--root", "fleet/trust/1.root.json"], "signed metadata does not hold"),
        (["unpack", "new", "STICK", "--root", "fleet/trust/targets.json"], "is no root of trust"),
        (["unpack", "new", "fleet"], "exists"),
    ],
)
def test_what_cannot_be_packed_or_unpacked_is_refused(
    tmp_path: Path,
    signed: Path,
    bundles: dict[str, Bundle],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    why: str,
) -> None:
    verb, source, *rest = words
    first = bundles[source].path if verb == "pack" else signed / source
    more = [tmp_path / "stick" if word == "STICK" else word for word in rest]
    ended = headway(capsys, "bundle", verb, first, *(_below(signed, word) for word in more))
    assert ended.code == 2
    assert why in ended.err


def _below(signed: Path, word: Path | str) -> Path | str:
    return signed / word if isinstance(word, str) and (signed / word).exists() else word


def test_a_signed_stick_is_unpacked_with_its_version(
    tmp_path: Path, signed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = signed / "fleet" / "trust" / "1.root.json"
    ended = headway(capsys, "bundle", "unpack", signed / "new", tmp_path / "out", "--root", root)
    assert ended.code == 0
    assert "signed, version 2" in ended.out


@pytest.mark.parametrize("error", [OverflowError("too large"), ValueError("x" * 900)], ids=["overflow", "long"])
def test_what_nobody_foresaw_on_a_stick_is_refused_once_and_told(
    tmp_path: Path, stick: Path, error: Exception
) -> None:
    """Else the agent would fail on it at each look and at each start, and whoever brought it wait."""
    offered: list[str] = []

    def offer(_trust: bytes | None, desired: Desired) -> None:
        offered.append(desired.release.release_id)
        raise error

    with Stick(stick) as opened:
        release = bring(opened, tmp_path / "data", "default")
    for _ in range(2):  # and after a restart
        inbox = Inbox(tmp_path / "data", offer=offer, pending=lambda _desired: True)
        inbox.look()
    assert offered == [release.release_id]
    told = refusal(tmp_path / "data")
    assert told is not None
    assert told.reason.startswith(f"the stick cannot be looked at: {type(error).__name__}: ")
    assert (told.release_id, bool(told.hint), len(told.reason) <= 500) == (release.release_id, True, True)
    assert not is_ordered(tmp_path / "data")


@pytest.mark.parametrize("error", [StoreFull("full", hint="Free some."), OSError(28, "No space left on device")])
def test_a_full_disk_refuses_no_stick(tmp_path: Path, stick: Path, error: Exception) -> None:
    def offer(_trust: bytes | None, _desired: Desired) -> None:
        raise error

    with Stick(stick) as opened:
        bring(opened, tmp_path / "data", "default")
    with pytest.raises(StoreFull):
        Inbox(tmp_path / "data", offer=offer, pending=lambda _desired: True).look()
    assert is_ordered(tmp_path / "data")


def wait_until_tried(store: Store, times: int) -> None:
    wait_for(lambda: [row.state for row in store.updates.newest()] == times * [UpdateState.ROLLED_BACK])


def test_a_release_that_was_rolled_back_is_tried_again_when_somebody_brings_it_again(tmp_path: Path) -> None:
    """The cause may be mended; but an order that lies there since before a restart is not tried at each start."""
    tries: list[str] = []
    ref = ReleaseRef(release_id="ab" * 32, name="r", size_bytes=10)
    order = tmp_path / INBOX_NAME / ORDER_NAME

    def fetch(*_: object, **__: object) -> None:
        tries.append("once more")
        raise BadFormat("a cause that is mended meanwhile", hint="Mend it.")

    @contextlib.contextmanager
    def agent(store: Store) -> Iterator[Inbox]:
        updater = Updater(
            store,
            tmp_path,
            channel="default",
            precision=None,
            fetch=fetch,
            admit=lambda _bundle: pytest.fail("nothing was fetched"),
            serve=lambda _release: None,
            on_event=lambda _event: None,
        )
        updater.boot()
        try:

            def offer(_trust: bytes | None, desired: Desired) -> None:
                updater.start(desired)

            yield Inbox(tmp_path, offer=offer, pending=updater.pending, again=updater.ask_again)
        finally:
            updater.stop()

    def carry() -> None:
        write_whole(order, encode_json(StickIndex(release=ref, channel="default")))

    with Store.open(tmp_path, "line-1") as store:
        order.parent.mkdir()
        with agent(store) as inbox:
            for brought in (1, 2, 3):
                carry()
                inbox.look()
                wait_until_tried(store, brought)
                inbox.look()
                assert not order.exists()
                assert len(tries) == brought
            carry()
            inbox.look()
            wait_until_tried(store, 4)
        assert order.exists()
        with agent(store) as inbox:  # the agent ended before it could clear the order away
            inbox.look()
            inbox.look()
            assert not order.exists()
            assert len(tries) == 4


def test_a_stick_helps_where_the_same_release_hangs_in_a_download(
    tmp_path: Path, stick: Path, bundles: dict[str, Bundle]
) -> None:
    """It was assigned over a network that is down since: the download waits for that and never fails."""
    with socket.socket() as nobody, Stick(stick) as opened, Store.open(tmp_path / "data", "line-1") as store:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        over_mqtt = ChunkFetcher(
            MqttSettings(port=nobody.getsockname()[1]), "line-1", "default", tmp_path / "data" / "chunks"
        )

        def fetch(
            ref: ReleaseRef,
            target: Path,
            *,
            progress: Callable[[int, int], None] = lambda _done, _total: None,
            stop: threading.Event | None = None,
        ) -> object | None:
            if inbox.fetch(ref, target):
                return ref
            hangs.set()
            return over_mqtt.fetch(ref, target, progress=progress, stop=stop)

        hangs = threading.Event()
        updater = Updater(
            store,
            tmp_path / "data",
            channel="default",
            precision=None,
            fetch=fetch,
            admit=lambda bundle: open_runtime(bundle, "fp32"),
            serve=lambda _release: None,
            on_event=lambda _event: None,
            watch_s=0.0,
        )
        inbox = Inbox(
            tmp_path / "data",
            offer=lambda _trust, desired: updater.start(desired),
            pending=updater.pending,
            again=updater.ask_again,
        )
        updater.boot()
        try:
            release = opened.index.release
            updater.start(Desired(release=release, channel="default", deadline_utc=4e9))
            assert hangs.wait(60.0)
            bring(opened, tmp_path / "data", "default")
            inbox.look()
            assert updater.wait_until(release.release_id, UpdateState.COMMITTED, 60.0), updater.status()
            inbox.look()
            assert not is_ordered(tmp_path / "data")
        finally:
            updater.stop()
