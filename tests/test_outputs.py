"""Verdicts arrive at a PLC, a service and the history; what is slow or away holds nothing up, and a stop says
reject."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import functools
import http.server
import io
import json
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agent.camera import Box
from device_agent.config import HttpOutput, ModbusOutput, PluginOutput
from device_agent.history import COLUMNS, History, read_history, write_csv
from device_agent.outputs import GROUP_PARTS, LATE_S, WAITING_PARTS, Outputs, OutputTally, open_output
from device_agent.outputs.http import HttpPosts
from device_agent.parts import Finding, Part
from device_agent.site_file import parse_site
from sdk.errors import ConfigError, OutputFailed, OutputRefused
from sdk.wire import Verdict
from tests.commands import headway
from tests.disks import fill, small
from tests.simulators import wait_for
from tests.test_parts import found

__all__ = ["small"]

pymodbus = pytest.importorskip("pymodbus", reason="needs the extra modbus")
DEADLINE_S = 60.0
WRITE_COIL = 5
READ_REGISTERS = 3
"""Modbus's function codes."""


def part_of(number: int, verdict: Verdict = Verdict.REJECT, name: str = "", shown: str = "pit") -> Part:
    finding: Finding = found(shown, tile=2)
    tile = Finding(replace(finding.shot, box=Box(8, 16, 24, 32), camera=1), finding.decision)
    return Part(
        number=number,
        name=name or f"p{number}",
        verdict=verdict,
        reason=shown,
        finding=tile,
        frames=1,
        tiles=4,
        rejected=1,
        captured_utc=1_700_000_000.0 + number,
        captured_s=time.monotonic(),
        decided_s=time.monotonic(),
    )


class SimOutput:
    """Takes verdicts, or fails as it is told to."""

    name = "sim"

    def __init__(self, *, replays: bool = True) -> None:
        self.replays = replays
        self.got: list[int] = []
        self.failures: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()
        self.beats = 0
        self.closed = 0

    def send(self, part: Part) -> None:
        self.gate.wait(DEADLINE_S)
        if self.failures:
            raise self.failures.pop(0)
        self.got.append(part.number)

    def beat(self) -> None:
        self.beats += 1

    def close(self) -> None:
        self.closed += 1


@contextlib.contextmanager
def delivering(*outputs: Any) -> Iterator[Outputs]:
    all_of_them = Outputs()
    for output in outputs:
        all_of_them.add(output)
    all_of_them.start()
    try:
        yield all_of_them
    finally:
        all_of_them.stop()


def away() -> OutputFailed:
    return OutputFailed("it is away", hint="-")


def test_every_output_gets_every_verdict_in_order_and_is_closed_at_the_end() -> None:
    one, other = SimOutput(), SimOutput()
    with delivering(one, other) as outputs:
        for i in range(50):
            outputs.put(part_of(i))
        wait_for(lambda: len(one.got) == len(other.got) == 50, DEADLINE_S)
    assert one.got == list(range(50))
    assert (one.closed, other.closed) == (1, 1)


def test_an_output_that_hangs_holds_no_other_up() -> None:
    stuck, free = SimOutput(), SimOutput()
    stuck.gate.clear()
    with delivering(stuck, free) as outputs:
        for i in range(10):
            outputs.put(part_of(i))
        wait_for(lambda: len(free.got) == 10, DEADLINE_S)
        assert stuck.got == []
        stuck.gate.set()


def test_what_records_gets_a_verdict_again_until_it_arrives_and_in_order() -> None:
    output = SimOutput()
    output.failures = [away(), away()]
    with delivering(output) as outputs:
        for i in range(3):
            outputs.put(part_of(i))
        wait_for(lambda: output.got == [0, 1, 2], DEADLINE_S)
        ((_, tally, _, latency),) = outputs.report()
        assert (tally.sent, tally.dropped, tally.fault) == (3, 0, "")
        assert latency.latency().count == 3


def test_what_acts_on_the_line_gets_a_verdict_when_it_falls_or_never() -> None:
    output = SimOutput(replays=False)
    output.failures = [away()]
    with delivering(output) as outputs:
        outputs.put(part_of(0))
        outputs.put(part_of(1))
        wait_for(lambda: output.got == [1], DEADLINE_S)
        assert outputs.report()[0][1].dropped == 1


def late(number: int, verdict: Verdict) -> Part:
    return replace(part_of(number, verdict), decided_s=time.monotonic() - LATE_S)


def test_what_acts_on_the_line_gets_no_verdict_that_waited_while_it_hung() -> None:
    acting, recording = SimOutput(replays=False), SimOutput()
    with delivering(acting, recording) as outputs:
        for i in range(5):
            outputs.put(late(i, Verdict.PASS))
        outputs.put(part_of(5))
        wait_for(lambda: acting.got == [5] and len(recording.got) == 6, DEADLINE_S)
        assert [tally.dropped for _, tally, _, _ in outputs.report()] == [5, 0]


def test_a_late_rejection_is_told_where_nothing_newer_follows() -> None:
    acting = SimOutput(replays=False)
    with delivering(acting) as outputs:
        outputs.put(late(0, Verdict.REJECT))
        wait_for(lambda: acting.got == [0], DEADLINE_S)


@pytest.mark.parametrize("error", [OutputRefused("no such part", hint="-"), KeyError("a bug")], ids=type)
def test_a_verdict_that_is_refused_or_breaks_the_output_ends_it_not(error: Exception) -> None:
    output = SimOutput(replays=not isinstance(error, KeyError))
    output.failures = [error]
    with delivering(output) as outputs:
        outputs.put(part_of(0))
        outputs.put(part_of(1))
        wait_for(lambda: output.got == [1], DEADLINE_S)
        assert outputs.report()[0][1].dropped == 1


def test_a_fault_is_told_while_it_lasts() -> None:
    output = SimOutput()
    output.failures = [away()] * 1000
    with delivering(output) as outputs:
        outputs.put(part_of(0))
        wait_for(lambda: outputs.report()[0][1].fault == "it is away", DEADLINE_S)
        assert outputs.report()[0][2] == 1, "what is tried again waits too"
        output.failures.clear()
        wait_for(lambda: outputs.report()[0][1].fault == "" and output.got == [0], DEADLINE_S)
        wait_for(lambda: outputs.report()[0][2] == 0, DEADLINE_S)


def test_beats_make_good_one_verdict_that_did_not_arrive_and_not_each() -> None:
    output = SimOutput(replays=False)
    output.failures = [away(), away()]
    with delivering(output) as outputs:

        def fault_after(beats: int) -> str:
            seen = output.beats
            wait_for(lambda: output.beats >= seen + beats, DEADLINE_S)
            return outputs.report()[0][1].fault

        outputs.put(part_of(0))
        wait_for(lambda: outputs.report()[0][1].dropped == 1, DEADLINE_S)
        assert fault_after(2) == ""
        outputs.put(part_of(1))
        wait_for(lambda: outputs.report()[0][1].dropped == 2, DEADLINE_S)
        assert fault_after(2) == "it is away"
        outputs.put(part_of(2))
        wait_for(lambda: outputs.report()[0][1].fault == "" and output.got == [2], DEADLINE_S)


def test_outputs_of_one_name_are_told_apart() -> None:
    outputs = Outputs()
    for _ in range(3):
        outputs.add(SimOutput())
    assert [name for name, *_ in outputs.report()] == ["sim", "sim (2)", "sim (3)"]


def test_a_stop_delivers_what_waits_and_gives_up_on_what_is_away() -> None:
    there, gone = SimOutput(), SimOutput()
    gone.failures = [away()] * 10_000
    with delivering(there, gone) as outputs:
        for i in range(20):
            outputs.put(part_of(i))
    assert there.got == list(range(20))
    assert (there.closed, gone.closed) == (1, 1)
    assert outputs.report()[1][1].dropped == 20


class SimRecord(SimOutput):
    """Takes several verdicts at once."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[int] = []

    def send_all(self, parts: Sequence[Part]) -> None:
        self.gate.wait(DEADLINE_S)
        if self.failures:
            raise self.failures.pop(0)
        self.groups.append(len(parts))
        self.got += [part.number for part in parts]


def given(record: SimRecord, count: int) -> OutputTally:
    """Let that many verdicts wait, then start; return the tally when all of them have been dealt with."""
    outputs = Outputs()
    outputs.add(record)
    for i in range(count):
        outputs.put(part_of(i))
    outputs.start()
    ((_, tally, _, latency),) = outputs.report()
    wait_for(lambda: tally.sent + tally.dropped == count, DEADLINE_S)
    outputs.stop()
    assert latency.latency().count == tally.sent
    return tally


def test_what_records_takes_what_waits_together_and_in_order() -> None:
    record, count = SimRecord(), 2 * GROUP_PARTS + 10
    tally = given(record, count)
    assert (tally.sent, tally.dropped, tally.fault) == (count, 0, "")
    assert record.got == list(range(count))
    assert record.groups == [GROUP_PARTS, GROUP_PARTS, 10]


def test_verdicts_that_went_together_are_tried_again_together() -> None:
    record = SimRecord()
    record.failures = [away(), away()]
    assert given(record, 3) == OutputTally(sent=3)
    assert record.groups == [3]


def test_verdicts_that_are_refused_together_are_all_counted() -> None:
    record = SimRecord()
    record.failures = [OutputRefused("no such part", hint="-")] * 4
    tally = given(record, 3)
    assert (tally.sent, tally.dropped, record.got) == (0, 3, [])


@pytest.mark.parametrize(
    "error",
    [
        OutputRefused("no such part", hint="-"),
        UnicodeEncodeError("utf-8", "\udcfc", 0, 1, "surrogates not allowed"),
        TypeError("no number"),
        sqlite3.IntegrityError("NOT NULL"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_one_verdict_that_cannot_be_written_takes_none_of_its_group_along(error: Exception) -> None:
    record = SimRecord()
    record.failures = [error, error]  # together, and the first by itself
    tally = given(record, 3)
    assert (tally.sent, tally.dropped, tally.fault) == (2, 1, "")
    assert (record.got, record.groups) == ([1, 2], [1, 1])


def test_an_output_that_may_not_hold_more_drops_and_counts() -> None:
    record, outputs = SimRecord(), Outputs()
    outputs.add(record)
    for _ in range(WAITING_PARTS + 5):
        outputs.put(part_of(0))
    ((_, tally, depth, _),) = outputs.report()
    assert (tally.dropped, depth) == (5, WAITING_PARTS)
    outputs.stop()


# Modbus


class Plc:
    """A real pymodbus server, for as long as the `with` block."""

    def __init__(self, port: int = 0) -> None:
        from pymodbus import datastore

        block: Any = datastore.ModbusSequentialDataBlock
        device = datastore.ModbusDeviceContext(co=block(1, [False] * 32), hr=block(1, [0] * 32))
        self._context = datastore.ModbusServerContext(devices=device, single=True)
        self.port = port
        self.refuse_coils = 0  # the next so many writes of one, as a PLC does that is busy
        self.refuse_reading: dict[int, int] = {}  # of registers: by exception code, the next so many times
        self._loop = asyncio.new_event_loop()
        self._server: Any = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.run_forever()
        self._loop.close()

    async def _serve(self) -> None:
        from pymodbus.server import ModbusTcpServer

        self._server = ModbusTcpServer(
            self._context, address=("127.0.0.1", self.port), trace_pdu=self._perhaps_refused
        )
        await self._server.serve_forever(background=True)
        self.port = self._server.transport.sockets[0].getsockname()[1]
        self._ready.set()

    def _perhaps_refused(self, sending: bool, pdu: Any) -> Any:
        if not sending and self.refuse_coils and pdu.function_code == WRITE_COIL:
            self.refuse_coils -= 1
            pdu.address = 30_000  # there is no such coil
        if sending and pdu.function_code == READ_REGISTERS:
            for code, times in self.refuse_reading.items():
                if times:
                    self.refuse_reading[code] -= 1
                    return self._refusal(pdu, code)
        return pdu

    @staticmethod
    def _refusal(pdu: Any, code: int) -> Any:
        from pymodbus.pdu import ExceptionResponse

        refusal = ExceptionResponse(READ_REGISTERS, code, device_id=pdu.dev_id)
        refusal.transaction_id = pdu.transaction_id
        return refusal

    def __enter__(self) -> Plc:
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._server.shutdown(), self._loop).result(DEADLINE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def set_coil(self, address: int) -> None:
        """Leave a coil on, as one that is retained while the PLC is off."""
        with self._reader() as writer:
            assert not writer.write_coil(address, True).isError()

    def coil(self, address: int) -> bool:
        with self._reader() as reader:
            return bool(reader.read_coils(address, count=1).bits[0])

    def register(self, address: int) -> int:
        with self._reader() as reader:
            return int(reader.read_holding_registers(address, count=1).registers[0])

    def set_register(self, address: int, value: int) -> None:
        """Leave a number, as one that is retained, or is lost, while the PLC is off."""
        with self._reader() as writer:
            assert not writer.write_register(address, value).isError()

    def _reader(self) -> Any:
        from pymodbus.client import ModbusTcpClient

        reader: Any = ModbusTcpClient("127.0.0.1", port=self.port)
        return reader


def modbus(plc: Plc, **more: Any) -> Any:
    settings = {"pass_coil": 3, "reject_coil": 4, "counter_register": 5, "heartbeat_register": 6, **more}
    return open_output(ModbusOutput(host="127.0.0.1", port=plc.port, **settings), "line-1", "run")


def test_a_plc_sees_each_verdict_and_reject_when_the_agent_stops() -> None:
    with Plc() as plc:
        with delivering(modbus(plc)) as outputs:
            wait_for(lambda: plc.coil(4), DEADLINE_S, "reject before the first verdict")
            outputs.put(part_of(1, Verdict.PASS))
            wait_for(lambda: plc.register(5) == 1, DEADLINE_S)
            assert (plc.coil(3), plc.coil(4)) == (True, False)
            outputs.put(part_of(2, Verdict.REJECT))
            wait_for(lambda: plc.register(5) == 2, DEADLINE_S)
            assert (plc.coil(3), plc.coil(4)) == (False, True)
            outputs.put(part_of(3, Verdict.PASS))
            wait_for(lambda: plc.register(5) == 3, DEADLINE_S)
            assert plc.coil(3)
        assert (plc.coil(3), plc.coil(4)) == (False, True)


def test_the_counter_goes_on_over_a_restart_of_the_agent() -> None:
    """Each run began at 1: of two runs of one part each, the PLC saw no change for the second."""
    with Plc() as plc:
        for told in (1, 2, 3):
            coils = modbus(plc)  # killed: nobody closes it
            coils.beat()
            coils.send(part_of(1, Verdict.PASS))
            assert plc.register(5) == told
        coils.send(part_of(2))
        coils.send(part_of(5))
        assert plc.register(5) == 7, "what was dropped leaves a gap"


@pytest.mark.parametrize(("stands", "then"), [(65_534, [65_535, 0, 1]), (65_535, [0, 1, 2]), (0, [1, 2, 3])])
def test_the_counter_begins_again_after_its_last_number(stands: int, then: list[int]) -> None:
    with Plc() as plc:
        plc.set_register(5, stands)
        coils = modbus(plc)
        found = []
        for number in (1, 2, 3):
            coils.send(part_of(number))
            found.append(plc.register(5))
        assert found == then
        coils.close()


def test_the_counter_never_stays_at_what_a_plc_that_was_away_has_kept() -> None:
    with Plc() as plc:
        port, coils = plc.port, modbus(plc)
        coils.send(part_of(1))
    with pytest.raises(OutputFailed):
        coils.beat()
    with Plc(port) as back:
        back.set_register(5, 2)
        coils.beat()
        coils.send(part_of(2, Verdict.PASS))
        assert (back.register(5), back.coil(3)) == (3, True)
        coils.send(part_of(3, Verdict.PASS))
        assert back.register(5) == 4
        coils.close()


def test_a_plc_that_is_busy_is_asked_for_its_counter_again_and_shown_no_life_until_then() -> None:
    with Plc() as plc:
        plc.set_register(5, 700)
        plc.refuse_reading = {6: 1}
        coils = modbus(plc)
        with pytest.raises(OutputFailed, match="the PLC refuses"):
            coils.beat()
        assert (plc.coil(4), plc.register(6)) == (True, 0)
        coils.send(part_of(1, Verdict.PASS))
        assert plc.register(5) == 701
        coils.close()


@pytest.mark.parametrize("code", [1, 2])
def test_a_counter_that_can_only_be_written_begins_where_the_last_run_did_not(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins = iter((500, 40_000))
    monkeypatch.setattr("secrets.randbelow", lambda _: next(begins))
    with Plc() as plc:
        for told in (501, 40_001):
            plc.refuse_reading = {code: 1}
            coils = modbus(plc)
            coils.send(part_of(1, Verdict.PASS))
            assert (plc.register(5), plc.coil(3)) == (told, True)
            coils.close()


def test_the_heartbeat_goes_on_without_parts() -> None:
    with Plc() as plc, delivering(modbus(plc)):
        wait_for(lambda: plc.register(6) >= 2, DEADLINE_S)


def test_a_plc_that_was_away_is_told_reject_first_and_no_verdict_of_the_past() -> None:
    with Plc() as plc:
        port = plc.port
    with delivering(modbus(plc, heartbeat_register=None)) as outputs:
        outputs.put(part_of(1, Verdict.PASS))
        wait_for(lambda: outputs.report()[0][1].dropped == 1, DEADLINE_S)
        assert "127.0.0.1" in outputs.report()[0][1].fault
        with Plc(port) as back:
            wait_for(lambda: back.coil(4), DEADLINE_S, "reject after it came back")
            assert (back.coil(3), back.register(5)) == (False, 0)
            outputs.put(part_of(2, Verdict.PASS))
            wait_for(lambda: back.register(5) == 2 and back.coil(3), DEADLINE_S)


def test_a_plc_that_refuses_is_a_fault() -> None:
    with Plc() as plc:
        coils = modbus(plc, pass_coil=30_000)
        with pytest.raises(OutputFailed, match="the PLC refuses"):
            coils.send(part_of(1, Verdict.PASS))
        coils.close()


def test_reject_is_said_again_until_the_plc_takes_it_after_a_connection() -> None:
    with Plc() as plc:
        plc.set_coil(3)
        plc.refuse_coils = 1
        coils = modbus(plc)
        with pytest.raises(OutputFailed, match="the PLC refuses"):
            coils.beat()
        assert plc.register(6) == 0, "no sign of life while a pass stands"
        coils.beat()
        assert (plc.coil(3), plc.coil(4), plc.register(6)) == (False, True, 1)
        coils.close()


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_a_rejection_that_the_plc_refused_leaves_no_pass_standing(refused: int) -> None:
    with Plc() as plc:
        coils = modbus(plc)
        coils.send(part_of(1, Verdict.PASS))
        coils.beat()
        plc.refuse_coils = refused
        with pytest.raises(OutputFailed, match="the PLC refuses"):
            coils.send(part_of(2, Verdict.REJECT))
        for _ in range(refused - 1):
            with pytest.raises(OutputFailed, match="the PLC refuses"):
                coils.beat()
        coils.beat()
        assert (plc.coil(3), plc.coil(4)) == (False, True)
        assert (plc.register(5), plc.register(6)) == (1, 2)
        coils.close()


def test_a_pass_without_its_counter_does_not_stand() -> None:
    with Plc() as plc:
        coils = modbus(plc, counter_register=30_000)
        with pytest.raises(OutputFailed, match="the PLC refuses"):
            coils.send(part_of(1, Verdict.PASS))
        coils.beat()
        assert (plc.coil(3), plc.coil(4)) == (False, True)
        coils.close()


# HTTP


class Service:
    """A real HTTP server that notes what is posted and answers as it is told to."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.answers: list[int] = []
        self.location = "http://192.0.2.1/elsewhere"
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = outer.answers.pop(0) if outer.answers else 204
                if code < 300:
                    outer.posts.append(json.loads(body))
                    outer.tokens.append(self.headers["Authorization"])
                self.send_response(code)
                self.send_header("Location", outer.location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/parts"

    def __enter__(self) -> Service:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_a_service_gets_each_verdict_once_in_order_though_it_fails_at_times(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    with Service() as service:
        service.answers = [503, 429]
        settings = HttpOutput(url=service.url, token_file=tmp_path / "token")
        with delivering(HttpPosts(settings, "line-1", "run-7")) as outputs:
            for i in (1, 2, 3):
                outputs.put(part_of(i, Verdict.REJECT))
            wait_for(lambda: len(service.posts) == 3, DEADLINE_S)
        assert [post["number"] for post in service.posts] == [1, 2, 3]
        first = service.posts[0]
        assert (first["device"], first["run"], first["part"]) == ("line-1", "run-7", "p1")
        assert (first["verdict"], first["reason"], first["decision"]) == ("reject", "pit", "pit")
        assert first["tile"] == [1, 8, 16, 24, 32]
        assert set(service.tokens) == {"Bearer s3cret"}


@pytest.mark.parametrize("code", [301, 302, 307, 401, 403, 404, 405, 407, 408, 500])
def test_an_answer_that_is_not_about_one_verdict_loses_none(code: int) -> None:
    """A proxy's login page took the whole backlog: each verdict was redirected there, and given up."""
    with Service() as service:
        service.answers = [code] * 3
        with delivering(HttpPosts(HttpOutput(url=service.url), "line-1", "run")) as outputs:
            for i in (1, 2, 3):
                outputs.put(part_of(i))
            wait_for(lambda: len(service.posts) == 3, DEADLINE_S)
            assert [post["number"] for post in service.posts] == [1, 2, 3]
            assert outputs.report()[0][1].dropped == 0


def test_a_redirect_is_told_with_where_it_points_and_no_secret_of_it() -> None:
    with Service() as service:
        service.answers, service.location = [302], "http://u:pw@login.plant/sso\x1b?token=s3cret"
        posts = HttpPosts(HttpOutput(url=service.url), "line-1", "run")
        with pytest.raises(OutputFailed, match=r"answers 302 Found, to http://login\.plant/sso\\x1b$") as caught:
            posts.send(part_of(1))
        assert not isinstance(caught.value, OutputRefused)


@pytest.mark.parametrize("code", [400, 409, 413, 422])
def test_a_verdict_that_a_service_will_never_take_is_dropped_and_counted(code: int) -> None:
    with Service() as service:
        service.answers = [code]
        with delivering(HttpPosts(HttpOutput(url=service.url), "line-1", "run")) as outputs:
            outputs.put(part_of(1))
            outputs.put(part_of(2))
            wait_for(lambda: len(service.posts) == 1, DEADLINE_S)
            assert service.posts[0]["number"] == 2
            assert outputs.report()[0][1].dropped == 1


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://x/y", "mes.plant/parts", "http://", "http://mes:99999/x", "http://[mes/x"]
)
def test_what_is_no_http_address_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ConfigError, match="is no http address"):
        open_output(HttpOutput(url=url), "line-1", "run")


def test_a_token_file_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token_file"):
        open_output(HttpOutput(url="http://x/", token_file=tmp_path / "none"), "line-1", "run")


# The history


def test_the_history_has_every_verdict_with_its_tile_while_it_is_being_written(tmp_path: Path) -> None:
    history = History(tmp_path, 1000)
    unseen = replace(part_of(2, name="late"), finding=None, reason="no decision in time")
    for part in (part_of(1, Verdict.PASS, shown="good"), unseen, part_of(3)):
        history.send(part)
    rows = list(read_history(tmp_path))
    assert [(row.part, row.verdict, row.reason) for row in rows] == [
        ("p1", "pass", "good"),
        ("late", "reject", "no decision in time"),
        ("p3", "reject", "pit"),
    ]
    assert (rows[2].camera, rows[2].x, rows[2].y, rows[2].width, rows[2].height) == (1, 8, 16, 24, 32)
    assert (rows[2].tiles, rows[2].rejected_tiles, rows[2].head) == (4, 1, 1)
    assert len(rows[2].sample) == 64
    assert (rows[1].sample, rows[1].head, rows[1].camera) == ("", None, None)
    assert [row.part for row in read_history(tmp_path, verdict="reject", newest=1)] == ["p3"]
    second = read_history(tmp_path, since_utc=1_700_000_002, until_utc=1_700_000_003)
    assert [row.part for row in second] == ["late"]
    history.close()


def test_verdicts_that_are_written_together_are_all_there_or_none(tmp_path: Path) -> None:
    history = History(tmp_path, 1000)
    history.send_all([part_of(1), part_of(2)])
    with pytest.raises(sqlite3.Error):
        history.send_all([part_of(3), replace(part_of(4), captured_utc=None)])  # type: ignore[arg-type]
    assert [row.part for row in read_history(tmp_path)] == ["p1", "p2"]
    history.send_all([part_of(5)])
    assert [row.part for row in read_history(tmp_path)] == ["p1", "p2", "p5"]
    history.close()


def test_a_verdict_that_no_file_can_hold_is_dropped_and_the_others_are_written(tmp_path: Path) -> None:
    outputs = Outputs()
    outputs.add(History(tmp_path, 1000))
    for i, name in enumerate(["ok-1", "pr\udcfcf", "ok-2", "ok-3"], 1):
        outputs.put(part_of(i, name=name))
    outputs.start()
    ((_, tally, _, _),) = outputs.report()
    wait_for(lambda: tally.sent + tally.dropped == 4, DEADLINE_S)
    outputs.stop()
    assert (tally.sent, tally.dropped) == (3, 1)
    assert [row.part for row in read_history(tmp_path)] == ["ok-1", "ok-2", "ok-3"]


def test_a_verdict_that_no_message_can_hold_is_dropped_and_the_next_is_posted() -> None:
    with Service() as service, delivering(HttpPosts(HttpOutput(url=service.url), "line-1", "run")) as outputs:
        outputs.put(part_of(1, name="pr\udcfcf"))
        outputs.put(part_of(2))
        wait_for(lambda: len(service.posts) == 1, DEADLINE_S)
        assert service.posts[0]["number"] == 2
        assert outputs.report()[0][1].dropped == 1


def test_the_history_keeps_the_newest_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    for start in (0, 1500):
        history = History(tmp_path, 1000)
        for i in range(start, start + 1500):
            history.send(replace(part_of(i), finding=None))
        history.close()
    rows = [row.part for row in read_history(tmp_path)]
    assert rows == [f"p{i}" for i in range(2000, 3000)]


def lacked(folder: Path, run: str, *outputs: str, newest: int = WAITING_PARTS) -> dict[str, list[str]]:
    """Return what outputs lack when a run begins, as run/number."""
    history = History(folder, 1000, run)
    found = history.resume(outputs, newest=newest)
    history.close()
    return {name: [f"{each.run}/{each.number}" for each in parts] for name, parts in found.items()}


def decided(folder: Path, run: str, count: int, *outputs: str, reached: int = 0) -> None:
    """Let a run decide so many parts, of which each output gets the first ones."""
    history = History(folder, 1000, run)
    history.resume(outputs, newest=WAITING_PARTS)
    for name in outputs if reached else ():
        history.delivered(name, part_of(reached))  # before it stands there
    history.send_all([part_of(i + 1) for i in range(count)])
    history.close()


def test_an_output_lacks_what_was_decided_since_it_is_there_and_not_delivered(tmp_path: Path) -> None:
    decided(tmp_path, "a", 3)
    assert lacked(tmp_path, "b", "mes") == {"mes": []}, "none of the past is for an output that is new"
    decided(tmp_path, "c", 3, "mes", reached=2)
    decided(tmp_path, "d", 2, "mes")
    assert lacked(tmp_path, "e", "mes", "other") == {"mes": ["c/3", "d/1", "d/2"], "other": []}
    assert lacked(tmp_path, "e", "mes", "other", newest=2) == {"mes": ["d/1", "d/2"], "other": []}
    history = History(tmp_path, 1000, "f")
    (first, *_) = history.resume(["mes"], newest=WAITING_PARTS)["mes"]
    history.delivered("mes", first)
    history.close()
    history.delivered("mes", part_of(1))  # a thread that hung: too late, and no error
    assert lacked(tmp_path, "g", "mes") == {"mes": ["d/1", "d/2"]}


def test_an_output_that_was_taken_out_of_the_settings_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decided(tmp_path, "a", 2, "mes")
    assert lacked(tmp_path, "b") == {}
    assert "mes: 2 verdicts that waited will not be delivered" in caplog.text
    assert lacked(tmp_path, "c", "mes") == {"mes": []}


def test_a_verdict_that_was_kept_is_told_as_it_was(tmp_path: Path) -> None:
    unseen = replace(part_of(2, name="late"), finding=None, reason="no decision in time")
    parts = [part_of(1, Verdict.PASS, shown="good"), unseen]
    history = History(tmp_path, 1000, "a")
    history.resume(["mes"], newest=WAITING_PARTS)
    history.send_all(parts)
    history.close()
    history = History(tmp_path, 1000, "b")
    kept = history.resume(["mes"], newest=WAITING_PARTS)["mes"]
    history.close()
    assert [each.result() for each in kept] == [part.result() for part in parts]
    assert [(each.number, each.verdict) for each in kept] == [(1, Verdict.PASS), (2, Verdict.REJECT)]


def test_a_stop_says_what_it_leaves_and_lets_none_overtake(caplog: pytest.LogCaptureFixture) -> None:
    here, gone = SimOutput(), SimOutput()
    gone.failures = [away()] * 10_000
    reached = list[Part]()
    outputs = Outputs()
    outputs.add(here)
    outputs.add(gone, (), reached.append)
    outputs.start()
    for i in range(5):
        outputs.put(part_of(i))
    outputs.stop()
    assert "sim (2): 5 verdicts wait for the next start, parts p0 to p4" in caplog.text
    assert (gone.got, reached, outputs.report()[1][1].dropped) == ([], [], 0)


def test_a_stop_says_what_waits_for_no_start_since_the_history_has_not_got_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a full disk and a dead service it said of all that they wait."""
    history, gone = SimOutput(), SimOutput()
    gone.failures = [away()] * 10_000
    reached = list[Part]()
    outputs = Outputs()
    outputs.add(history)
    outputs.add(gone, (), reached.append)
    outputs.start()
    for i in range(2):
        outputs.put(part_of(i))
    wait_for(lambda: history.got == [0, 1], DEADLINE_S)
    history.failures = [OutputRefused("this one never", hint="-")]
    outputs.put(part_of(2))
    outputs.put(part_of(3))
    wait_for(lambda: history.got == [0, 1, 3], DEADLINE_S)
    history.failures = [away()] * 10_000  # the disk is full
    for i in range(4, 7):
        outputs.put(part_of(i))
    outputs.stop()
    lost = "since the history has not got them"
    assert "sim (2): 3 verdicts wait for the next start, parts p0 to p3" in caplog.text
    assert f"sim (2): 4 verdicts are not delivered and will not be, {lost}, parts p2 to p6" in caplog.text
    assert "sim: 3 verdicts are not delivered and will not be, parts p4 to p6" in caplog.text
    assert [tally.dropped for _, tally, _, _ in outputs.report()] == [4, 4]


def test_what_waits_is_what_the_next_start_finds_though_the_disk_was_full(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    history, gone, outputs = History(small, 1000, "a"), SimOutput(), Outputs()
    history.resume(["mes"], newest=WAITING_PARTS)
    gone.failures = [away()] * 10_000
    outputs.add(history)
    outputs.add(gone, (), functools.partial(history.delivered, "mes"))
    outputs.start()
    for i in range(1, 3):
        outputs.put(part_of(i))
    wait_for(lambda: outputs.report()[0][1].sent == 2, DEADLINE_S)
    others, number = fill(small), 500  # more than the file has room for as it is
    for i in range(3, number + 1):
        outputs.put(part_of(i))
    wait_for(lambda: bool(outputs.report()[0][1].fault), DEADLINE_S)
    outputs.stop()
    others.unlink()
    kept = len(lacked(small, "b", "mes")["mes"])
    assert 2 <= kept < number
    assert f"sim: {kept} verdicts wait for the next start, parts p1 to p{kept}\n" in caplog.text
    lost = f"{number - kept} verdicts are not delivered and will not be"
    assert f"sim: {lost}, since the history has not got them, parts p{kept + 1} to p{number}\n" in caplog.text


def test_a_history_of_an_earlier_version_is_read_and_taken_over(tmp_path: Path) -> None:
    decided(tmp_path, "a", 2)
    with contextlib.closing(sqlite3.connect(tmp_path / "history" / "history.sqlite3")) as db:
        db.execute("DROP TABLE delivered")
        for column in ("run", "number", "defect", "lot"):
            db.execute(f"ALTER TABLE parts DROP COLUMN {column}")
        db.execute("PRAGMA user_version = 1")
    assert [(row.part, row.run, row.number) for row in read_history(tmp_path)] == [
        ("p1", "", None),
        ("p2", "", None),
    ]
    decided(tmp_path, "b", 1, "mes")
    assert [(row.run, row.number) for row in read_history(tmp_path)] == [("", None), ("", None), ("b", 1)]
    assert lacked(tmp_path, "c", "mes") == {"mes": ["b/1"]}


def test_a_verdict_keeps_its_lot_for_whoever_gets_it_after_a_restart(tmp_path: Path) -> None:
    history = History(tmp_path, 1000, "a")
    history.resume({"mes"}, newest=10)
    history.send(replace(part_of(1), lot="B7"))
    history.close()
    history = History(tmp_path, 1000, "b")
    (kept,) = history.resume({"mes"}, newest=10)["mes"]
    history.close()
    assert (kept.lot, kept.result().lot) == ("B7", "B7")


def test_as_csv_a_part_id_is_never_a_formula(tmp_path: Path) -> None:
    history = History(tmp_path, 1000)
    for i, name in enumerate(["=1+1", "@SUM(A1)", 'a,"b"', "4711"], 1):
        history.send(part_of(i, name=name))
    out = io.StringIO()
    assert write_csv(read_history(tmp_path), out) == 4
    lines = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert tuple(lines[0]) == COLUMNS
    assert [line["part"] for line in lines] == ["'=1+1", "'@SUM(A1)", 'a,"b"', "4711"]
    assert lines[0]["captured_utc"] == "2023-11-14T22:13:21.000+00:00"
    history.close()


def test_the_command_writes_what_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.toml"
    site.write_text('device = "line-1"\ndata_dir = "data"\n[camera]\nkind = "folder"\npath = "images"\n')
    nothing = headway(capsys, "agent", "history", site)
    assert nothing.code == 2
    assert "there is no history" in nothing.err
    history = History(tmp_path / "data", 1000)
    for i in (1, 2, 3):
        history.send(part_of(i, Verdict.PASS if i == 2 else Verdict.REJECT))
    file = tmp_path / "parts.csv"
    assert "wrote 2 parts" in headway(capsys, "agent", "history", site, "--verdict", "reject", "--csv", file).out
    assert [line["part"] for line in csv.DictReader(file.open())] == ["p1", "p3"]
    printed = headway(capsys, "agent", "history", site, "--csv", "-", "--since", "2023-11-14T22:13:22").out
    assert [line["part"] for line in csv.DictReader(io.StringIO(printed))] == ["p2", "p3"]
    assert "p3" in headway(capsys, "agent", "history", site, "--last", "1").out
    history.send(part_of(4, name="018-pitted_surface_293.jpg"))
    monkeypatch.setenv("COLUMNS", "80")
    shown = headway(capsys, "agent", "history", site, "--last", "1").out
    assert "2023-11-14 22:13:24" in shown
    assert "…" not in shown, "a part's id is not cut"
    assert headway(capsys, "agent", "history", site, "--csv", tmp_path / "none" / "x.csv").code == 2
    history.close()


def test_an_export_that_cannot_be_made_leaves_the_one_before(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.toml"
    site.write_text('device = "line-1"\ndata_dir = "data"\n[camera]\nkind = "folder"\npath = "images"\n')
    file = small / "last_week.csv"
    file.write_text("what the week brought")
    assert "there is no history" in headway(capsys, "agent", "history", site, "--csv", file).err
    assert file.read_text() == "what the week brought"
    printed = headway(capsys, "agent", "history", site, "--csv", "-")
    assert (printed.code, printed.out) == (2, ""), "not a line of names for nothing"
    with contextlib.closing(History(tmp_path / "data", 1000)) as history:
        for i in range(100):
            history.send(part_of(i, name=f"part {i} {'x' * 100}"))
    fill(small)
    full = headway(capsys, "agent", "history", site, "--csv", file)
    assert (full.code, "No space left" in full.err) == (2, True)
    assert file.read_text() == "what the week brought"
    assert {each.name for each in small.iterdir()} == {"last_week.csv", "others"}
    (small / "others").unlink()
    assert "wrote 100 parts" in headway(capsys, "agent", "history", site, "--csv", file).out
    assert len(file.read_text().splitlines()) == 101


# Settings and plug-ins

SITE = 'device = "a"\n[camera]\nkind = "folder"\npath = "x"\n'


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('kind = "modbus"\nhost = "plc"\n', "give pass_coil, reject_coil, or both"),
        ('kind = "modbus"\nhost = "plc"\npass_coil = 1\nreject_coil = 1\n', "are the same coil"),
        (
            'kind = "modbus"\nhost = "plc"\npass_coil = 1\ncounter_register = 1\nheartbeat_register = 1\n',
            "are the same register",
        ),
        ('kind = "modbus"\nhost = "plc"\ncoil = 1\n', r"unknown key 'coil' in \[output\]"),
        ('kind = "http"\n', r"url is missing"),
        ('kind = "lamp"\n', "nvalid value 'lamp'"),
    ],
)
def test_an_output_that_cannot_be_is_refused_with_its_key(table: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_site(f"{SITE}[[output]]\n{table}", Path("/plant/site.toml"))


def test_a_plug_in_brings_an_output(tmp_path: Path) -> None:
    info = tmp_path / "lamp-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lamp\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[headway.outputs]\nlamp = lamp_plugin:Lamp\n")
    (tmp_path / "lamp_plugin.py").write_text(
        "class Lamp:\n"
        "    name, replays = 'lamp', False\n"
        "    def __init__(self, options):\n        self.options, self.shown = options, []\n"
        "    def send(self, part):\n        self.shown.append(part.verdict.value)\n"
        "    def beat(self):\n        pass\n"
        "    def close(self):\n        self.shown.append('off')\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        site = parse_site(f'{SITE}[[output]]\nkind = "lamp"\npin = 4\n', Path("/plant/site.toml"))
        (settings,) = site.output
        assert isinstance(settings, PluginOutput)
        lamp: Any = open_output(settings, "line-1", "run")
        assert lamp.options == {"pin": 4}
        with delivering(lamp) as outputs:
            outputs.put(part_of(1))
            wait_for(lambda: lamp.shown == ["reject"], DEADLINE_S)
        assert lamp.shown == ["reject", "off"]
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("lamp_plugin", None)
