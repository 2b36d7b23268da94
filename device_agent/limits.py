"""How much a device's store keeps, and what goes first where there is too much."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StoreLimits:
    """How much the store keeps.

    Where pictures are over their limit these go, until a twentieth of it is free: the oldest that nobody is asked
    about; then those of the last parts; then questions, the least important first. Labelled ones never.

    Attributes:
        keep_samples: Unlabelled samples with pictures, at most: where there would be more, the oldest twentieth
            goes, or the oldest hundred. Labelled ones stay.
        keep_parts: Of the last so many parts everything stays at hand for labelling, as long as there is room.
        max_image_bytes: Pictures on disk, labelled ones included; where these alone fill it, others are refused.
        ballast_bytes: Kept on the disk to be given up for labels when it is full; 0 for none.
        queue: Questions waiting for the operator; beyond it the least important one falls out.
        queue_per_group: Of one part or burst: more of the same teaches little.
        outbox: Own records the fleet has not acknowledged; beyond it labels are refused. None is no limit,
            for a station without a fleet.
        keep_heads: Rows of the heads' history.
        max_store_bytes: Size of the SQLite file, pictures not counted.
        reserve_bytes: Samples are refused while less than this is free on the disk. Labels are not.
    """

    keep_samples: int = 2000
    queue: int = 200
    queue_per_group: int = 2
    outbox: int | None = 200_000
    keep_heads: int = 2000
    max_store_bytes: int = 4 * 1024**3
    reserve_bytes: int = 64 * 1024**2
    keep_parts: int = 50
    max_image_bytes: int = 16 * 1024**3
    ballast_bytes: int = 0
