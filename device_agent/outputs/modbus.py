"""Verdicts to a PLC: coils over Modbus TCP. Needs the extra `modbus`. The only importer of pymodbus.

Wire for failure: `pass_coil` is on only while a part may pass, so a coil that nobody sets, a cable that is cut
and an agent that stopped all reject. The PLC reads the coil when `counter_register` has changed, and rejects
when `heartbeat_register` stands still: a coil by itself cannot show that whoever wrote it has died.

Order of writing: the coil that must go off, the coil that must go on, then the counter. A PLC may refuse any of
these (busy, still starting): then reject is said again, before anything else, until it is taken.

The counter goes on from what stands in the PLC when the agent starts: from 1 again, the first verdict of a run
could write the number that is there already, and the PLC would not see that it has come.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterator
from typing import Any, Final

from device_agent.config import ModbusOutput
from device_agent.parts import Part
from sdk.errors import MissingExtra, OutputFailed
from sdk.extras import installing
from sdk.wire import Verdict

try:
    from pymodbus.client import ModbusTcpClient
    from pymodbus.exceptions import ModbusException
    from pymodbus.pdu import ModbusPDU
except ImportError as error:
    raise MissingExtra("a Modbus output needs pymodbus", hint=installing("modbus")) from error

# What goes wrong is raised, and told once; pymodbus would say it again at every beat.
logging.getLogger("pymodbus").setLevel(logging.CRITICAL)

_log = logging.getLogger(__name__)

REGISTER_RANGE: Final = 1 << 16
"""Counter and heartbeat begin again at 0 after 65,535."""
_NOT_READABLE: Final = (1, 2)
"""Illegal function, illegal address (Modbus application protocol, section 7): what a PLC says whose registers can
only be written. Whatever else it says may be otherwise the next time."""


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
        self._fresh = True  # a connection of which the counter has not been read
        self._base: int | None = None  # the counter is a verdict's number and so much more
        self._standing: int | None = None  # the counter in the PLC; None where nobody may read it

    def send(self, part: Part) -> None:
        """Set the coils for a verdict, then the counter to one that is not there yet."""
        self._connect()
        self._unsure = True  # until all of it is written: a refusal would leave the verdict before standing
        self._set(part.verdict)
        if self._settings.counter_register is not None:
            self._count(self._settings.counter_register, part.number)
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
            self._unsure = self._fresh = True
            try:
                connected = self._client.connect()
            except (ModbusException, OSError) as error:
                raise self._failed(str(error)) from error
            if not connected:
                raise self._failed("no connection")
        if self._unsure:
            self._set(Verdict.REJECT)
            self._unsure = False
        if self._fresh and self._settings.counter_register is not None:
            self._go_on(self._settings.counter_register)
        self._fresh = False

    def _go_on(self, address: int) -> None:
        """Let the counter go on from what stands in the PLC, and from there alone in all of this run."""
        self._standing = self._read(address)
        if self._base is None and self._standing is None:
            _log.warning("%s: the counter cannot be read, so it begins anywhere", self.name)
            self._base = secrets.randbelow(REGISTER_RANGE)  # not where the last run did
        elif self._base is None:
            self._base = self._standing

    def _count(self, address: int, number: int) -> None:
        """Write the counter of a verdict, never the one that stands there; dropped verdicts leave a gap."""
        base = self._base or 0
        if (base + number) % REGISTER_RANGE == self._standing:
            base += 1
        self._base, counter = base, (base + number) % REGISTER_RANGE
        self._register(address, counter)
        self._standing = counter

    def _read(self, address: int) -> int | None:
        """Return what stands in a register; None where the PLC has none to read at this address."""
        with self._translated():
            answer = self._client.read_holding_registers(address, count=1, device_id=self._settings.unit)
            if answer.isError() and answer.exception_code in _NOT_READABLE:
                return None
            self._check(answer)
        return int(answer.registers[0]) if answer.registers else None

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
