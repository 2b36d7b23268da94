"""Labels that would count no more with another release: nobody could say their codes in its feature space.

A new feature space changes every code, and each device embeds anew the pictures that were labelled on it. Where a
device was replaced, revoked or scrapped the pictures are gone, and with them what was learned from them. That is
said before it happens, and refused beyond what was agreed to (docs/fleet.md, "Labels that would be lost").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sdk.bundle import Bundle
from sdk.errors import FleetError
from sdk.fleet.channel_ledger import Device
from sdk.fleet.store import FleetStore
from sdk.labels import RELEASE_DEVICE


@dataclass(frozen=True)
class Loss:
    """Labels of one device that would count no more, at most so many.

    Attributes:
        device: Which.
        labels: How many.
        gone: It is not in the fleet any more; else it does not have their pictures.
    """

    device: str
    labels: int
    gone: bool

    @property
    def words(self) -> str:
        """It, in words."""
        one = self.labels == 1
        why = "it is gone" if self.gone else f"it does not have {'its picture' if one else 'their pictures'}"
        return f"{self.labels} {'label' if one else 'labels'} of {self.device}: {why}"


def losses(store: FleetStore, channel: str, bundle: Bundle, precision: str | None) -> list[Loss]:
    """Return which labels that count now would not with a bundle, most first.

    Those whose code in its feature space the log has, and those that it brings itself, count. A device that was
    not brought up to date yet does not say how many pictures it has: it is believed to have them, and so is one
    whose state is older than its last labels.

    Args:
        store: The fleet's.
        channel: Where the bundle is to go.
        bundle: It.
        precision: Which of its precisions is to serve; its first by default.
    """
    learned, space = store.learned(channel), bundle.space(precision)
    if learned is None or learned.live.space == space:
        return []
    with store.read() as ledger:
        left, devices = ledger.codes_left(channel), ledger.devices(channel)
    at, brought = bytes.fromhex(space), set(bundle.base(precision).samples)
    own = Counter(device for device in learned.live.devices if device != RELEASE_DEVICE)
    to_say = Counter(
        device
        for sample, device in zip(learned.live.samples, learned.live.devices, strict=True)
        if device != RELEASE_DEVICE and sample not in brought and not left.get((at, sample), False)
    )
    return lost(own, to_say, devices, learned.live.digest)


def lost(
    own: Counter[str], to_say: Counter[str], devices: Collection[Device], digest: str | None = None
) -> list[Loss]:
    """Return how many labels of each device nobody can say the codes of.

    Args:
        own: Labels that count, by the device that they were given on.
        to_say: Of these, those without a code in the other feature space.
        devices: Those that are in the fleet.
        digest: Of the live set, to tell a state of before; None takes each for one of now.
    """
    said = {device.device: device.state for device in devices}
    found = []
    for device, labels in to_say.items():
        if (state := said.get(device)) is None:
            found.append(Loss(device, labels, gone=True))
            continue
        # Labels come with the log, pictures are counted in the state: it may be of before the last labels.
        now = digest is None or state.live_set_digest in (None, digest)
        known = (own[device] if now else 0) if state.own_labels is None else min(own[device], state.own_labels)
        if state.labelled_pictures is not None and state.labelled_pictures < known:
            found.append(Loss(device, min(labels, known - state.labelled_pictures), gone=False))
    return sorted(found, key=lambda loss: (-loss.labels, loss.device))


def check_losses(found: Iterable[Loss], allowed: int) -> None:
    """Say that so many labels may be lost.

    Raises:
        FleetError: more would be.
    """
    found = list(found)
    count = sum(loss.labels for loss in found)
    if count > allowed:
        named = "; ".join(loss.words for loss in found[:5]) + ("; ..." if len(found) > 5 else "")
        raise FleetError(
            f"{count} labels that count now would not with this release, since nobody has their pictures: {named}",
            hint=f"--max-lost-labels {count} does it all the same; they count again when the channel goes back. "
            "Bring a device back that has them, or restore its backup, and nothing is lost.",
        )
