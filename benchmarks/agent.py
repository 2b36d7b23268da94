"""What the whole agent costs beside its backbone: throughput, the head's share, time to reject, relearning.

    python -m benchmarks.agent BUNDLE --images DIR                          about four minutes
    python -m benchmarks.agent BUNDLE --images DIR --threads 2
    python -m benchmarks.agent BUNDLE --images DIR --only reject --trace reject.svg     every part, drawn
    python -m benchmarks.agent BUNDLE --images DIR --rounds 1 --seconds 2   only shows that it runs

`headway agent run` is a process of its own, with a real Mosquitto, a real Modbus server (pymodbus) and a store on
disk; images are replayed from the folder, over and over, and a result counts when it has arrived over MQTT.

- Throughput: the agent and a bare ONNX Runtime loop take turns on the same files, model and number of threads;
  while the loop runs, the agent is stopped (SIGSTOP). The loop is measured with decoding and preprocessing before
  each call, as one would write it, and on tensors that were prepared beforehand.
- Reject: parts are triggered over MQTT at a fixed rate; the time is from sending the trigger to the write of the
  PLC's counter register, which follows the coil. It includes reading and decoding the frame.
- Relearning: the agent replays as fast as it can, with and without a label every half second, in turns.

What a single frame costs, step by step, is `benchmarks.frame`'s. Medians of rounds. Where other work runs on the
machine, ratios say more than times, and processor time more than either: what the busiest thread takes for a frame
bounds the throughput that free cores would give.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from pymodbus import datastore
from pymodbus.server import ModbusTcpServer

from benchmarks.report import Report, Table, Target, as_json, as_text
from sdk.bundle import Bundle
from sdk.fleet.broker import Mosquitto
from sdk.images import read
from sdk.layouts import IMAGE_SUFFIXES
from sdk.mqtt import Message, MqttSession
from sdk.wire import Result, Topics, decode_json

DEVICE: Final = "bench"
TOPIC: Final = "bench/part"
COUNTER: Final = 0
SETTLE_S: Final = 0.7
"""After a change of turns, before counting: queues fill, caches warm."""
LABEL_EVERY_S: Final = 0.5
READY_S: Final = 120.0
THROUGHPUT_TARGET: Final = 0.9
HEAD_TARGET: Final = 0.05
FRAME_STAGES: Final = ("prepare", "backbone", "head")
REJECT_TARGET_MS: Final = 50.0
RELEARN_TARGET: Final = 1.5


class Plc:
    """A Modbus server that notes when its counter register is written."""

    def __init__(self) -> None:
        block: Any = datastore.ModbusSequentialDataBlock
        device = datastore.ModbusDeviceContext(co=block(1, [False] * 8), hr=block(1, [0] * 8))
        self._context = datastore.ModbusServerContext(devices=device, single=True)
        self._loop = asyncio.new_event_loop()
        self._server: Any = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.written: list[tuple[int, float]] = []
        self.port = 0

    def __enter__(self) -> Plc:
        self._thread.start()
        if not self._ready.wait(READY_S):
            raise RuntimeError("the Modbus server does not start")
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._server.shutdown(), self._loop).result(READY_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.run_forever()

    async def _serve(self) -> None:
        self._server = ModbusTcpServer(self._context, address=("127.0.0.1", 0), trace_pdu=self._note)
        await self._server.serve_forever(background=True)
        self.port = self._server.transport.sockets[0].getsockname()[1]
        self._ready.set()

    def _note(self, sending: bool, pdu: Any) -> Any:
        if not sending and pdu.function_code == 6 and pdu.address == COUNTER:
            self.written.append((int(pdu.registers[0]), time.monotonic()))
        return pdu


class Listener:
    """Notes what arrives on the agent's result topic, and when."""

    def __init__(self, broker: Mosquitto) -> None:
        self.results: list[tuple[float, Result]] = []
        self.session = MqttSession(broker.settings, "listener", on_message=self._arrive)
        self.session.subscribe([Topics().up_result(DEVICE)])
        self.session.connect()

    def _arrive(self, message: Message) -> None:
        self.results.append((time.monotonic(), decode_json(message.payload, Result)))

    def during(self, seconds: float) -> list[tuple[float, Result]]:
        """Wait, and return what arrived meanwhile."""
        before = len(self.results)
        time.sleep(seconds)
        return self.results[before:]


class AgentProcess:
    """`headway agent run` on a site of its own; stopped and continued between turns."""

    def __init__(self, child: subprocess.Popen[str], page: str) -> None:
        self._child, self.page = child, page

    def cpu_s(self) -> dict[str, float]:
        """Return processor seconds so far, by thread."""
        return {
            task.name: int((task / "schedstat").read_text().split()[0]) / 1e9
            for task in Path(f"/proc/{self._child.pid}/task").iterdir()
        }

    def stages_ms(self) -> dict[str, float]:
        """Return the milliseconds that all frames so far have taken, by stage."""
        stages = {stage["stage"]: stage for stage in self.call("state")["line"]["stages"]}
        return {name: stages[name]["count"] * stages[name]["mean_ms"] for name in FRAME_STAGES}

    def pause(self) -> None:
        self._child.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._child.send_signal(signal.SIGCONT)
        time.sleep(SETTLE_S)

    def call(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.page}api/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=READY_S) as answer:
            return json.load(answer)

    def settle(self) -> dict[str, Any]:
        """Wait until the head serves and nothing is learned or tried any more; return the state."""
        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s:
            state: dict[str, Any] = self.call("state")
            if state["head"] is not None and not state["head"]["busy"]:
                return state
            time.sleep(0.2)
        raise RuntimeError("the agent is not ready")


@contextmanager
def agent(
    folder: Path, bundle: Path, camera: str, broker: Mosquitto, threads: int, more: str = ""
) -> Iterator[AgentProcess]:
    """Run an agent for as long as the `with` block."""
    folder.mkdir()
    site = folder / "site.toml"
    site.write_text(
        f'device = "{DEVICE}"\nbundle = "{bundle.resolve()}"\n{camera}\n[page]\nport = 0\n'
        f'[runtime]\nthreads = {threads}\nprovider = "cpu"\ntensorrt = "off"\n'
        f'[part]\ndecide_within_ms = 10000.0\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n{more}'
    )
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "sdk.cli", "agent", "run", str(site)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as child,
    ):
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise RuntimeError((folder / "log").read_text()[-2000:])
        try:
            yield AgentProcess(child, json.loads(line)["page"])
        finally:
            child.send_signal(signal.SIGCONT)
            child.terminate()


def folder_camera(images: Path) -> str:
    """Return the table of a camera that replays a folder as fast as it can be inspected."""
    return f'[camera]\nkind = "folder"\npath = "{images.resolve()}"\nloop = true\n'


class Bare:
    """The loop that one would write: decode, preprocess, run."""

    def __init__(self, bundle: Bundle, precision: str | None, files: Sequence[Path], threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            bundle.backbone(precision), options, providers=["CPUExecutionProvider"]
        )
        self._name = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        self._preprocess, self._files, self._next = bundle.manifest.preprocess, files, 0
        self._tensors = [self._tensor() for _ in range(min(64, len(files)))]

    def _tensor(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        self._next = (self._next + 1) % len(self._files)
        return self._preprocess.apply(read(self._files[self._next])[1])

    def whole(self, seconds: float) -> tuple[float, float]:
        """Return frames a second, and processor milliseconds a frame, with decoding and preprocessing."""
        return self._rate(self._tensor, seconds)

    def prepared(self, seconds: float) -> tuple[float, float]:
        """Return the same on tensors that are there already."""
        tensors = itertools.cycle(self._tensors)
        return self._rate(lambda: next(tensors), seconds)

    def _rate(self, tensor: Callable[[], Any], seconds: float) -> tuple[float, float]:
        for _ in range(3):
            self._session.run([self._output], {self._name: tensor()})
        began_s, cpu_s, count = time.monotonic(), time.process_time(), 0
        while time.monotonic() - began_s < seconds:
            self._session.run([self._output], {self._name: tensor()})
            count += 1
        return count / (time.monotonic() - began_s), 1000 * (time.process_time() - cpu_s) / count


def rate_of(arrived: Sequence[tuple[float, Result]]) -> float:
    """Return results a second, from the first to the last of a turn."""
    return (len(arrived) - 1) / (arrived[-1][0] - arrived[0][0]) if len(arrived) > 2 else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(np.asarray(values), share)) if values else float("nan")


def throughput(
    running: AgentProcess, listener: Listener, bare: Bare, rounds: int, seconds: float
) -> tuple[Table, list[Target]]:
    """Let agent and bare loops take turns."""
    rows: list[tuple[float, ...]] = []
    taken_ms = dict.fromkeys(FRAME_STAGES, 0.0)
    before = running.settle()
    for _ in range(rounds):
        running.go_on()
        earlier_s, earlier_ms = running.cpu_s(), running.stages_ms()
        arrived = listener.during(seconds)
        used_s = [now - earlier_s.get(thread, 0.0) for thread, now in running.cpu_s().items()]
        # Not over the pause: a frame that it interrupts would take as long as the pause.
        for stage, now_ms in running.stages_ms().items():
            taken_ms[stage] += now_ms - earlier_ms[stage]
        running.pause()
        cpu_ms, busiest_ms = (1000 * taken / max(1, len(arrived)) for taken in (sum(used_s), max(used_s)))
        rows.append((rate_of(arrived), cpu_ms, busiest_ms, *bare.whole(seconds), *bare.prepared(seconds)))
    running.go_on()
    assert running.call("state")["frames"] > before["frames"]
    middle = [statistics.median(column) for column in zip(*rows, strict=True)]
    to_whole, to_prepared = (statistics.median(row[0] / row[i] for row in rows) for i in (3, 5))
    busiest = statistics.median(row[6] / row[2] for row in rows)
    table = Table(
        "Frames a second",
        ("", "frames/s", "agent to it", "CPU ms a frame", "of the busiest thread"),
        (
            ("the agent: decode to stored decision and published result", middle[0], 1.0, middle[1], middle[2]),
            ("bare loop: decode, preprocess, run", middle[3], to_whole, middle[4], middle[4]),
            ("bare loop: run only", middle[5], to_prepared, middle[6], middle[6]),
        ),
        2,
    )
    return table, [
        Target("agent's throughput of a bare loop that decodes and preprocesses", to_whole, THROUGHPUT_TARGET),
        Target("agent's throughput of a bare loop on prepared tensors", to_prepared, THROUGHPUT_TARGET),
        Target("the same by processor time of the agent's busiest thread", busiest, THROUGHPUT_TARGET),
        Target(
            "head, novelty, code and decision of a frame's time, waits of busy threads included",
            taken_ms["head"] / sum(taken_ms.values()),
            HEAD_TARGET,
            at_least=False,
        ),
    ]


def relearning(
    running: AgentProcess, listener: Listener, rounds: int, seconds: float
) -> tuple[Table, list[Target]]:
    """Measure frames with and without labels being learned, in turns."""
    running.settle()
    classes = [each["id"] for each in running.call("state")["classes"]]
    still: list[list[float]] = []
    learning: list[list[float]] = []
    for turn in range(rounds):
        running.settle()
        time.sleep(SETTLE_S)
        still.append([result.latency_ms for _, result in listener.during(seconds)])
        stop = threading.Event()
        labels = threading.Thread(target=_label, args=(running, classes, stop, turn))
        labels.start()
        time.sleep(SETTLE_S)
        learning.append([result.latency_ms for _, result in listener.during(seconds)])
        stop.set()
        labels.join()
    ratio = statistics.median(
        percentile(b, 0.99) / percentile(a, 0.99) for a, b in zip(still, learning, strict=True)
    )
    rows = tuple(
        (name, len(some) / (rounds * seconds), percentile(some, 0.5), percentile(some, 0.99))
        for name, some in (
            ("no labels", list(chain(*still))),
            ("a label every half second", list(chain(*learning))),
        )
    )
    table = Table(
        "Capture to verdict, replayed as fast as possible", ("", "frames/s", "median ms", "p99 ms"), rows, 1
    )
    return table, [Target("p99 while relearning, of that without", ratio, RELEARN_TARGET, at_least=False)]


def _label(running: AgentProcess, classes: Sequence[str], stop: threading.Event, turn: int) -> None:
    number = turn
    while not stop.wait(LABEL_EVERY_S):
        sample = running.call("samples?limit=1&status=seen")
        if sample:
            number += 1
            body = {"sample": sample[0]["sample"], "class_id": classes[number % len(classes)], "operator": "bench"}
            running.call("labels", body)


def rejecting(
    running: AgentProcess, broker: Mosquitto, plc: Plc, rate: float, seconds: float, trace: Path | None = None
) -> tuple[Table, list[Target]]:
    """Trigger parts at a rate, and see when the PLC knows; draw every part where a file is named."""
    running.settle()
    session = MqttSession(broker.settings, "trigger", on_message=lambda _: None)
    session.connect()
    # The first parts warm everything up, and tell that the agent has subscribed.
    deadline_s = time.monotonic() + READY_S
    while len(plc.written) < 5 and time.monotonic() < deadline_s:
        session.publish(TOPIC, b"warm")
        time.sleep(0.3)
    time.sleep(1.0)
    first = plc.written[-1][0]
    sent: list[float] = []
    began_s = time.monotonic()
    for i in range(int(rate * seconds)):
        time.sleep(max(0.0, began_s + i / rate - time.monotonic()))
        sent.append(time.monotonic())
        session.publish(TOPIC, f"part {i}".encode(), qos=0)
    time.sleep(2.0)
    session.close()
    written = dict(plc.written)
    times = [(written[first + 1 + i] - at_s) * 1000 for i, at_s in enumerate(sent) if first + 1 + i in written]
    if trace is not None:
        draw(times, trace)
    state = running.call("state")
    stages = {stage["stage"]: stage for stage in state["line"]["stages"]}
    rows = (
        (
            f"trigger sent to PLC's register written ({len(times)} of {len(sent)} parts)",
            percentile(times, 0.5),
            percentile(times, 0.99),
            max(times, default=float("nan")),
        ),
        *(
            (f"  of it: {name}", stages[name]["p50_ms"], stages[name]["p99_ms"], stages[name]["max_ms"])
            for name in ("wait", "prepare", "backbone", "head", "verdict")
        ),
    )
    table = Table(f"Reject at {rate:g} parts a second", ("", "median ms", "p99 ms", "most ms"), rows, 1)
    return table, [
        Target("trigger to reject output, p99, ms", percentile(times, 0.99), REJECT_TARGET_MS, at_least=False),
        Target("parts without a verdict", float(len(sent) - len(times)), 0.0, at_least=False),
    ]


def draw(times: Sequence[float], file: Path) -> None:
    """Draw how long each part took from its trigger to the PLC's register."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 3), layout="constrained")
    axis.plot(times, ".", markersize=2)
    axis.axhline(percentile(times, 0.99), linewidth=0.8, label=f"p99: {percentile(times, 0.99):.1f} ms")
    axis.axhline(REJECT_TARGET_MS, linestyle="--", linewidth=0.8, color="grey", label=f"{REJECT_TARGET_MS:g} ms")
    axis.set_xlabel("part")
    axis.set_ylabel("trigger to reject output, ms")
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper right")
    figure.savefig(file)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Run all of it; print a report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.agent",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--threads", type=int, default=1, help="of the backbone, in agent and bare loop alike")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one turn")
    parser.add_argument("--rate", type=float, default=20.0, help="parts a second that are triggered")
    parser.add_argument("--only", choices=("throughput", "relearning", "reject"), help="one of the three")
    parser.add_argument("--precision", help="of the bundle's; the first by default")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="draw every triggered part: .svg")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.bundle)
    files = sorted(p for p in options.images.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    found: list[tuple[Table, list[Target]]] = []
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        broker = stack.enter_context(Mosquitto())
        listener = Listener(broker)
        stack.callback(listener.session.close)
        precision = "" if options.precision is None else f'precision = "{options.precision}"\n'
        camera = precision + folder_camera(options.images)
        if options.only != "reject":
            with agent(Path(scratch) / "replay", options.bundle, camera, broker, options.threads) as running:
                if options.only != "relearning":
                    bare = Bare(bundle, options.precision, files, options.threads)
                    found.append(throughput(running, listener, bare, options.rounds, options.seconds))
                if options.only != "throughput":
                    found.append(relearning(running, listener, options.rounds, options.seconds))
        if options.only in (None, "reject"):
            plc = stack.enter_context(Plc())
            more = (
                f'[trigger]\ntopic = "{TOPIC}"\n[[output]]\nkind = "modbus"\nhost = "127.0.0.1"\n'
                f"port = {plc.port}\npass_coil = 0\nreject_coil = 1\ncounter_register = {COUNTER}\n"
            )
            with agent(Path(scratch) / "line", options.bundle, camera, broker, options.threads, more) as running:
                duration_s = options.rounds * options.seconds
                found.append(rejecting(running, broker, plc, options.rate, duration_s, options.trace))
    load = os.getloadavg()[0]
    report = Report(
        "agent",
        "what the whole agent costs beside its backbone",
        tuple(table for table, _ in found),
        tuple(chain.from_iterable(targets for _, targets in found)),
        (
            f"{bundle.manifest.lineage.backbone} {bundle.precision(options.precision).precision}, "
            f"{len(files)} images, {options.threads} backbone threads, "
            f"{os.cpu_count()} cores, ONNX Runtime {onnxruntime.__version__}; load at the end {load:.1f}",
        ),
    )
    print(as_text(report))
    if options.json is not None:
        options.json.write_text(as_json([report]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
