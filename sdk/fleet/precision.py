"""Moving a channel to another precision of its release, on what its devices measured there. Nothing is assumed.

Codes of two precisions do not mix, so a channel runs one: the first that the release's manifest names. Moving is
a release like any other: the same files, the manifest with another precision first, rolled out in waves. Devices
carry their labels into its feature space and take it through their own trial, as after any change of backbone;
whatever goes wrong takes the same way back (docs/fleet.md, "Move to another precision").
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sdk.bundle import MANIFEST_NAME, Bundle, Manifest, decode_manifest, write_bundle
from sdk.errors import FleetError, Incompatible
from sdk.fleet.channel_ledger import Device, Publication
from sdk.fleet.store import FleetStore


@dataclass(frozen=True)
class Measured:
    """What a device says of the precisions of its channel's release.

    Attributes:
        device: Its id.
        online: Whether it is there now.
        serves: The precision that serves; None where it runs another release, or none.
        fixed: Its own settings name that precision.
        frame_ms: By precision, the median time of one frame through the backbone.
        refused: By precision, why it cannot run there.
    """

    device: str
    online: bool
    serves: str | None
    fixed: bool
    frame_ms: dict[str, float]
    refused: dict[str, str]


def measured(devices: Iterable[Device], release_id: str) -> list[Measured]:
    """Return what each device of a channel measured of the channel's release.

    Figures of another release are of another backbone, and count for nothing here.
    """
    found = []
    for device in devices:
        state = device.state
        of_it = state.release_id == release_id
        times = state.precisions if of_it else []
        found.append(
            Measured(
                device=device.device,
                online=state.online,
                serves=state.precision if of_it else None,
                fixed=state.precision_fixed,
                frame_ms={one.precision: one.frame_ms for one in times if not one.refused},
                refused={one.precision: one.refused for one in times if one.refused},
            )
        )
    return found


def check_move(target: str, rows: Sequence[Measured], *, max_latency_ratio: float, unmeasured: int) -> None:
    """Say that a channel may be moved to a precision.

    Args:
        target: The precision.
        rows: What its devices measured.
        max_latency_ratio: By which a frame may take longer than now, on any device.
        unmeasured: So many devices may have no figure for it: they find out by themselves, or are scrapped.

    Raises:
        FleetError: a device cannot run it, would not, or would be too slow; or nobody has measured it.
    """
    known = [row for row in rows if target in row.frame_ms or target in row.refused]
    if not known:
        raise FleetError(
            f"no device of this channel has measured {target}",
            hint="Devices measure it by themselves once they run the release: wait, or look at `precision show`.",
        )
    for row in rows:
        if target in row.refused:
            raise FleetError(
                f"{row.device} cannot run {target}: {row.refused[target]}",
                hint="Give devices like it a channel of their own, or export the release with another precision.",
            )
        if row.fixed and row.serves not in (None, target):
            raise FleetError(
                f"{row.device} stays at {row.serves}: its site.toml names it",
                hint="Take `precision` out of its site.toml first.",
            )
        now, then = row.frame_ms.get(row.serves or ""), row.frame_ms.get(target)
        if now and then and then > max_latency_ratio * now:
            raise FleetError(
                f"{row.device} takes {then:g} ms for a frame with {target}, {now:g} ms with {row.serves}",
                hint="--max-latency-ratio allows it, where that is soon enough for the line.",
            )
    missing = [row.device for row in rows if row not in known]
    if len(missing) > unmeasured:
        raise FleetError(
            f"{len(missing)} devices have not measured {target}: {', '.join(missing[:5])}",
            hint="Wait until they have been there, or --unmeasured N lets so many find out by themselves.",
        )


def faster(target: str, rows: Iterable[Measured]) -> float | None:
    """Return the median over devices of the time with a precision as a share of that with the one that serves."""
    shares = [
        row.frame_ms[target] / row.frame_ms[row.serves]
        for row in rows
        if row.serves is not None and row.frame_ms.get(row.serves) and row.frame_ms.get(target)
    ]
    return statistics.median(shares) if shares else None


def precisions_of(store: FleetStore, publication: Publication) -> list[str]:
    """Return the precisions of a release, the one that serves first."""
    files = {file.name: file for file in publication.release.descriptor.files}
    manifest = decode_manifest(store.chunks.read(files[MANIFEST_NAME]))
    return [entry.precision for entry in manifest.precisions]


def serving(bundle: Bundle, precision: str, out: Path) -> Bundle:
    """Return a bundle whose devices serve a precision: the bundle itself, or one made with that precision first.

    Devices serve the first that a release names, whatever else the fleet may write down.

    Args:
        bundle: What is to be published.
        precision: The precision to be first.
        out: The directory to make, where that is needed.

    Raises:
        Incompatible: the bundle does not have that precision.
        BundleError: its files cannot be read, or are not what its manifest says.
    """
    if bundle.precision() == bundle.precision(precision):
        return bundle
    files = {name: (bundle.path / name).read_bytes() for name in bundle.file_names() if name != MANIFEST_NAME}
    return _write_with_first(precision, files, bundle.manifest, out)


def with_precision_first(store: FleetStore, publication: Publication, target: str, out: Path) -> Bundle:
    """Write and return a release's bundle with another of its precisions first.

    Args:
        store: The fleet's directory, which has its chunks.
        publication: The release.
        target: The precision to be first.
        out: The directory to make.

    Raises:
        Incompatible: the release does not have that precision.
        FleetError: it is first already, also where the fleet's books have another one.
        StoreCorrupt, BadSignature: its chunks are damaged.
    """
    files = {file.name: store.chunks.read(file) for file in publication.release.descriptor.files}
    manifest = decode_manifest(files.pop(MANIFEST_NAME))
    names = [entry.precision for entry in manifest.precisions]
    if target not in names:
        raise Incompatible(
            f"release {publication.ref.name!r} has no {target}, only {', '.join(names)}",
            hint="Export it with that precision, and publish that.",
        )
    if names[0] == target and manifest.precisions[0].space != publication.space:
        raise FleetError(
            f"devices of channel {publication.channel} run {target} already; the fleet's books have another "
            "precision of the same release",
            hint=f"Publish its bundle again: headway fleet publish BUNDLE --precision {target}.",
        )
    if names[0] == target:
        raise FleetError(f"channel {publication.channel} runs {target} already", hint="There is nothing to move.")
    return _write_with_first(target, files, manifest, out)


def _write_with_first(precision: str, files: Mapping[str, bytes], manifest: Manifest, out: Path) -> Bundle:
    entries = sorted(manifest.precisions, key=lambda entry: entry.precision != precision)
    return write_bundle(out, files, msgspec.structs.replace(manifest, precisions=entries))
