"""The whole label log of a channel, checked from its first entry to its last, as rows that others can read.

No network, no clock. What a row is: `sdk.logrows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sdk.errors import LabelError
from sdk.fleet.store import FleetStore
from sdk.labels import Chain, Record
from sdk.logrows import Checked, row_of

_DAMAGED: Final = "The database was changed by hand or is damaged: restore it from a backup."


def log_rows(store: FleetStore, channel: str, checked: Checked, *, codes: bool = True) -> Iterator[dict[str, Any]]:
    """Yield a channel's log as rows, in order of positions; the last one only when all holds.

    Args:
        store: The fleet.
        channel: Whose union.
        checked: Told of each entry.
        codes: Whether to give the codes' bytes too.

    Raises:
        LabelError: the chain of a device is broken, its log ends before or after what was acknowledged, or entries
            are missing.
    """
    position = 1
    with store.read() as ledger:
        ends, length = ledger.log_ends(channel), ledger.log_length(channel)
        while records := ledger.records(channel, position):
            for at, record in enumerate(records, position):
                try:
                    checked.take(record if codes else Record(record.entry))
                except LabelError as error:
                    raise LabelError(f"position {at} of the union: {error}", hint=_DAMAGED) from error
                yield row_of(at, record, codes=codes)
            position += len(records)
    for device, (seq, last_hash) in ends.items():
        chain = checked.chains.get(device, Chain(device))
        if (chain.seq, chain.last_hash) != (seq, last_hash):
            raise LabelError(
                f"the log of {device} ends at entry {chain.seq}; {seq} were acknowledged", hint=_DAMAGED
            )
    if position != length + 1:
        raise LabelError(f"the union has {position - 1} entries of {length}", hint=_DAMAGED)
