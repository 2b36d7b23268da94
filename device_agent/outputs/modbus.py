"""Verdicts to a PLC: coils over Modbus TCP. Needs the extra `modbus`. The only importer of pymodbus.

Wire for failure: `pass_coil` is on only while a part may pass, so a coil that nobody sets, a cable that is cut
and an agent that stopped all reject. The PLC reads the coil when `counter_register` has changed, and rejects
when `heartbeat_register` stands still: a coil by itself cannot show that whoever wrote it has died.

Order of writing: the coil that must go off, the coil that must go on, then the counter. A PLC may refuse any of
these (busy, still starting): then reject is said again, before anything else, until it is taken.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, Final

from device_agent.config import ModbusOutput
from device_agent.parts import Part
from sdk.errors import MissingExtra, OutputFailed
from sdk.wire import Verdict

try:
    from pymodbus.client import ModbusTcpClient
    from pymodbus.exceptions import ModbusException
    from pymodbus.pdu import ModbusPDU
except ImportError as error:
    raise MissingExtra("a Modbus output needs pymodbus", hint="pip install 'headway-edge[modbus]'") from error

# What goes wrong is raised, and told once; pymodbus would say it again at every beat.
logging.getLogger("pymodbus").setLevel(logging.CRITICAL)

REGISTER_RANGE: Final = 1 << 16
"""Counter and heartbeat begin again after 65,535."""


class ModbusCoils:
    """One PLC.

    Args:
        settings: Where it is, and which coils and registers are ours.
    """

    replays = False

    def __init__(self, settings: ModbusOutput) -> None:
        self.name = f"modbus {settings.host}:{settings.port}"
        self._settings = settings
        self._client: Any = ModbusTcpClient(  # parts of it have no types
            settings.host, port=settings.port, timeout=settings.timeout_s, retries=0, reconnect_delay=0
        )
        self._beats = 0
        self._unsure = True  # what the coils say; the heartbeat stands still until they say reject

    def send(self, part: Part) -> None:
        """Set the coils for a verdict, then the counter to its number."""
        self._connect()
        self._unsure = True  # until all of it is written: a refusal would leave the verdict before standing
        self._set(part.verdict)
        if self._settings.counter_register is not None:
            self._register(self._settings.counter_register, part.number % REGISTER_RANGE)
        self._unsure = False

    def beat(self) -> None:
        """Say reject before the first verdict, after each new connection and after a write that was refused, and
        count the heartbeat on."""
        self._connect()
        if self._settings.heartbeat_register is not None:
            self._beats = (self._beats + 1) % REGISTER_RANGE
            self._register(self._settings.heartbeat_register, self._beats)

    def close(self) -> None:
        """Leave reject behind."""
        with contextlib.suppress(OutputFailed):
            self._connect()
            self._set(Verdict.REJECT)
        self._client.close()

    def _connect(self) -> None:
        if not self._client.connected:
            self._unsure = True
            try:
                connected = self._client.connect()
            except (ModbusException, OSError) as error:
                raise self._failed(str(error)) from error
            if not connected:
                raise self._failed("no connection")
        if self._unsure:
            self._set(Verdict.REJECT)
            self._unsure = False

    def _set(self, verdict: Verdict) -> None:
        passes, settings = verdict is Verdict.PASS, self._settings
        coils = [(settings.pass_coil, passes), (settings.reject_coil, not passes)]
        for address, on in sorted(coils, key=lambda coil: coil[1]):  # off before on: never both
            if address is not None:
                with self._translated():
                    self._check(self._client.write_coil(address, on, device_id=settings.unit))

    def _register(self, address: int, value: int) -> None:
        with self._translated():
            self._check(self._client.write_register(address, value, device_id=self._settings.unit))

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (ModbusException, OSError) as error:
            self._client.close()  # half an answer may be under way: begin anew
            raise self._failed(str(error)) from error

    def _check(self, answer: ModbusPDU) -> None:
        if answer.isError():
            raise self._failed(f"the PLC refuses: {answer}")

    def _failed(self, what: str) -> OutputFailed:
        return OutputFailed(
            f"{self.name}: {' '.join(what.split())[:150]}", hint="Check address, unit and the PLC."
        )
