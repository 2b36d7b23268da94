"""Which runtime serves is measured on the device: right first, then fast, and remembered."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from device_agent.config import RuntimeSettings
from device_agent.runtime import Batch, Runtime, open_runtime
from device_agent.runtime.choice import (
    CLOSE,
    TABLE_NAME,
    Measured,
    RuntimeChoice,
    accelerators,
    ranked,
    thread_counts,
)
from sdk.bundle import Bundle
from sdk.codes import Features
from sdk.errors import Incompatible, InferenceFailed
from tests.simulators import wait_for
from tests.tiny import tiny_bundle

Option = tuple[str, int]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("choice") / "bundle")


class Timed:
    """A runtime that takes as long as it is told, by a clock of its own; it may compute something else."""

    def __init__(self, inner: Runtime, device: SimDevice, name: Option) -> None:
        self.feature_size = inner.feature_size
        self.name = f"{name[0]} {name[1]}"
        self._inner, self._device, self._option = inner, device, name

    def features(self, batch: Batch) -> Features:
        self._device.now_s += self._device.takes_ms[self._option] / 1000 * len(batch)
        features = self._inner.features(batch)
        return -features if self._option in self._device.wrong else features


class SimDevice:
    """Providers and threads with their speed; some do not open, some compute wrongly. Counts what is opened."""

    def __init__(self, takes_ms: Mapping[Option, float]) -> None:
        self.takes_ms = dict(takes_ms)
        self.wrong: set[Option] = set()
        self.missing: set[Option] = set()
        self.opened: list[Option] = []
        self.now_s = 0.0

    def open(self, bundle: Bundle, precision: str, provider: str, threads: int) -> Runtime:
        option = provider, threads
        self.opened.append(option)
        if option in self.missing:
            raise InferenceFailed(f"{provider} does not start", hint="-")
        return Timed(open_runtime(bundle, precision, RuntimeSettings(threads=1)), self, option)

    def choice(self, folder: Path, settings: RuntimeSettings | None = None, machine: str = "m") -> RuntimeChoice:
        return RuntimeChoice(
            folder,
            settings or RuntimeSettings(),
            open_one=self.open,
            providers=list(dict.fromkeys(provider for provider, _ in self.takes_ms)),
            cores=4,
            machine=machine,
            clock=lambda: self.now_s,
        )


SPEEDS = {("cpu", 1): 30.0, ("cpu", 2): 18.0, ("cpu", 4): 12.0, ("cuda", 0): 3.0}


def test_the_fastest_that_is_right_serves(tmp_path: Path, bundle: Bundle) -> None:
    device = SimDevice(SPEEDS)
    assert device.choice(tmp_path).admit(bundle, None).name == "cuda 0"
    device.wrong.add(("cuda", 0))
    assert device.choice(tmp_path, machine="other").admit(bundle, None).name == "cpu 4"
    device.missing.add(("cpu", 4))
    assert device.choice(tmp_path, machine="third").admit(bundle, None).name == "cpu 2"


def test_the_table_says_what_was_measured_and_why_something_was_refused(tmp_path: Path, bundle: Bundle) -> None:
    device = SimDevice(SPEEDS)
    device.wrong.add(("cuda", 0))
    device.missing.add(("cpu", 2))
    choice = device.choice(tmp_path)
    choice.admit(bundle, None)
    rows = {(m.provider, m.threads): m for m in choice.table(bundle)}
    assert rows["cpu", 4].frame_ms == pytest.approx(12.0)
    assert rows["cpu", 4].score_off < 0.01
    assert "on the golden inputs" in rows["cuda", 0].refused
    assert rows["cpu", 2].refused == "cpu does not start"
    assert [m.frame_ms for m in choice.table(bundle) if not m.refused] == pytest.approx([12.0, 30.0])


def test_what_was_measured_is_not_measured_again(tmp_path: Path, bundle: Bundle) -> None:
    device = SimDevice(SPEEDS)
    device.choice(tmp_path).admit(bundle, None)
    device.opened.clear()
    assert device.choice(tmp_path).admit(bundle, None).name == "cuda 0"
    assert device.opened == [("cuda", 0)]


@pytest.mark.parametrize(
    "change", ["another machine", "damaged", "no text", "lost", "another backbone", "another setting"]
)
def test_what_was_measured_elsewhere_or_of_something_else_does_not_count(
    tmp_path: Path, bundle: Bundle, change: str
) -> None:
    device = SimDevice(SPEEDS)
    device.choice(tmp_path).admit(bundle, None)
    device.takes_ms["cuda", 0] = 100.0
    file = tmp_path / TABLE_NAME
    settings, machine, release = RuntimeSettings(), "m", bundle
    if change == "another machine":
        machine = "n"
    elif change == "damaged":
        file.write_bytes(file.read_bytes()[:-20])
    elif change == "no text":
        file.write_bytes(file.read_bytes().replace(b'"m"', b'"\xff"'))
    elif change == "lost":
        file.unlink()
    elif change == "another backbone":
        release = tiny_bundle(tmp_path / "other", backbone_seed=1)
    else:
        settings = RuntimeSettings(threads=3)
        device.takes_ms["cpu", 3] = 14.0
    expected = "cpu 3" if change == "another setting" else "cpu 4"
    assert device.choice(tmp_path, settings, machine).admit(release, None).name == expected


def test_a_remembered_runtime_that_is_wrong_today_is_measured_again(tmp_path: Path, bundle: Bundle) -> None:
    """A driver was changed and nobody told us."""
    device = SimDevice(SPEEDS)
    device.choice(tmp_path).admit(bundle, None)
    device.wrong.add(("cuda", 0))
    choice = device.choice(tmp_path)
    assert choice.admit(bundle, None).name == "cpu 4"


def test_a_provider_whose_driver_was_mended_serves_from_the_next_start(tmp_path: Path, bundle: Bundle) -> None:
    device = SimDevice(SPEEDS)
    device.missing.add(("cuda", 0))
    assert device.choice(tmp_path).admit(bundle, None).name == "cpu 4"
    device.opened.clear()
    assert device.choice(tmp_path).admit(bundle, None).name == "cpu 4"
    assert device.opened == [("cuda", 0), ("cpu", 4)]  # what is known of the processor is believed
    device.missing.clear()
    device.opened.clear()
    assert device.choice(tmp_path).admit(bundle, None).name == "cuda 0"
    assert device.opened == [("cuda", 0), ("cuda", 0)]


def test_a_refused_provider_is_tried_again_for_other_precisions_too(tmp_path: Path, bundle: Bundle) -> None:
    device, done = SimDevice(SPEEDS), list[bool]()
    device.missing.add(("cuda", 0))
    device.choice(tmp_path).admit(bundle, None)
    device.missing.clear()
    choice = device.choice(tmp_path)
    choice.measure_rest(bundle, lambda: done.append(True))
    wait_for(lambda: done)
    assert not any(row.refused for row in choice.table(bundle))


class Stopped(SimDevice):
    """Its last option's golden inputs take so long that it is stopped meanwhile."""

    choices: list[RuntimeChoice]

    def open(self, bundle: Bundle, precision: str, provider: str, threads: int) -> Runtime:
        if (provider, threads) == ("cpu", 4):
            for choice in self.choices:
                choice.close()
        return super().open(bundle, precision, provider, threads)


def test_what_a_stop_cut_short_is_not_remembered(tmp_path: Path, bundle: Bundle) -> None:
    """It stood there with 0.0 ms, and served for ever."""
    device = Stopped({("cpu", 1): 12.0, ("cpu", 2): 18.0, ("cpu", 4): 30.0})
    first = device.choice(tmp_path)
    device.choices = [first]
    first.measure(bundle, "fp32")
    device.choices = []
    assert first.table(bundle) == []
    assert device.choice(tmp_path).admit(bundle, None).name == "cpu 1"


def test_a_time_of_nothing_from_before_is_measured_again(tmp_path: Path, bundle: Bundle) -> None:
    device = SimDevice(SPEEDS)
    device.choice(tmp_path).admit(bundle, None)
    kept = json.loads((tmp_path / TABLE_NAME).read_bytes())
    (rows,) = kept["backbones"].values()
    next(row for row in rows if row["provider"] == "cpu")["frame_ms"] = 0.0
    (tmp_path / TABLE_NAME).write_text(json.dumps(kept))
    assert device.choice(tmp_path).admit(bundle, None).name == "cuda 0"


def test_gpus_and_their_driver_are_part_of_the_machine(tmp_path: Path) -> None:
    assert accelerators(tmp_path) == []
    for name, text in {
        "proc/driver/nvidia/version": "NVRM version: 550.54\n",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3\n",
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t NVIDIA T4\nIRQ: 33\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert accelerators(tmp_path) == [
        "NVRM version: 550.54\n",
        "# R36 (release), REVISION: 4.3\n",
        "Model: \t NVIDIA T4",
    ]


def test_what_the_settings_say_is_not_measured_around(tmp_path: Path, bundle: Bundle) -> None:
    device = SimDevice(SPEEDS)
    assert device.choice(tmp_path, RuntimeSettings(provider="cpu", threads=2)).admit(bundle, None).name == "cpu 2"
    assert ("cuda", 0) not in device.opened


def test_other_precisions_are_measured_beside_the_line(tmp_path: Path, bundle: Bundle) -> None:
    device, done = SimDevice(SPEEDS), list[bool]()
    choice = device.choice(tmp_path)
    choice.measure_rest(bundle, lambda: done.append(True))  # here the only precision is the rest
    wait_for(lambda: done)
    assert len(choice.table(bundle)) == len(SPEEDS)
    opened = len(device.opened)
    choice.measure_rest(bundle)
    choice.close()
    assert len(device.opened) == opened


@pytest.mark.parametrize(
    ("wrong", "missing", "match"),
    [
        (set(SPEEDS), set(), "on the golden inputs"),
        (set(), set(SPEEDS), "does not start"),
    ],
)
def test_where_nothing_is_right_nothing_serves(
    tmp_path: Path, bundle: Bundle, wrong: set[Option], missing: set[Option], match: str
) -> None:
    device = SimDevice(SPEEDS)
    device.wrong, device.missing = wrong, missing
    with pytest.raises(InferenceFailed, match=match):
        device.choice(tmp_path).admit(bundle, None)


def test_a_precision_that_the_bundle_lacks_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(Incompatible, match="no int8"):
        SimDevice(SPEEDS).choice(tmp_path).admit(bundle, "int8")


def test_a_full_disk_keeps_nothing_from_serving(tmp_path: Path, bundle: Bundle) -> None:
    gone = tmp_path / "gone"
    assert SimDevice(SPEEDS).choice(gone).admit(bundle, None).name == "cuda 0"
    assert not gone.exists()


def measured(threads: int, frame_ms: float, refused: str = "") -> Measured:
    return Measured(precision="fp32", provider="cpu", threads=threads, frame_ms=frame_ms, refused=refused)


def test_as_fast_with_fewer_threads_is_better() -> None:
    order = [m.threads for m in ranked([measured(1, 20.0), measured(2, 10.0 * CLOSE), measured(4, 10.0)])]
    assert order == [2, 4, 1]
    assert ranked([measured(1, 0.0, refused="wrong")]) == []


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (12, [1, 2, 4, 8, 12])])
def test_threads_worth_trying(cores: int, counts: list[int]) -> None:
    assert thread_counts(cores) == counts


def test_this_machine_measures_its_own_runtimes(tmp_path: Path, bundle: Bundle) -> None:
    choice = RuntimeChoice(tmp_path, RuntimeSettings())
    began_s = time.perf_counter()
    runtime = choice.admit(bundle, None)
    assert runtime.features(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, runtime.feature_size)
    rows = choice.table(bundle)
    assert all(0 < m.frame_ms < (time.perf_counter() - began_s) * 1e3 for m in rows if not m.refused)
    assert json.loads((tmp_path / TABLE_NAME).read_text())["machine"]
