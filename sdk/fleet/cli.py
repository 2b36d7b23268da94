"""`headway fleet`: serve a fleet, publish a bundle to it, see its devices and what they learned."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from sdk.errors import BundleError, FleetError, StoreCorrupt
from sdk.fleet.cli_broker import broker_options, broker_settings
from sdk.fleet.cli_classes import classes, merged_words
from sdk.fleet.cli_database import address_of, database_options
from sdk.fleet.cli_devices import devices
from sdk.fleet.cli_doctor import doctor
from sdk.fleet.cli_enroll import enroll, forget, renew, revoke, secure_broker, tls, tls_folder
from sdk.fleet.cli_keep import compare, lost_option, uncompared_option
from sdk.fleet.cli_labels import labels, retention
from sdk.fleet.cli_move import move_store
from sdk.fleet.cli_precision import precision as precision_commands
from sdk.fleet.cli_progress import check_outcome, presence, wait_for_devices
from sdk.fleet.cli_quarantine import hold_row, quarantine, release, suspects
from sdk.fleet.cli_rollout import plan_of, rollout
from sdk.fleet.cli_trust import (
    check_keys,
    has_trust,
    keys,
    keys_option,
    open_trust,
    passphrase_option,
    publish_bundle,
    publish_unsigned,
    sign,
)
from sdk.shown import say
from sdk.stopping import stop_on_signals

if TYPE_CHECKING:
    from sdk.fleet.channel_ledger import Device, Publication
    from sdk.fleet.store import FleetStore, Learned
    from sdk.labels import Record
    from sdk.liveset import LiveSet

MAX_SENTENCE = 600
_SENTENCES = frozenset({"error", "hint", "reason", "what", "renew"})
"""Of these the end matters: the reason stands there, or the command that mends it."""


@click.group()
def fleet() -> None:
    """Run a fleet: share what its lines learn, and publish releases to them.

    One directory holds a fleet: its devices, their label logs, its releases. A small plant needs two commands:

    \b
      headway fleet serve --dir fleet --start-broker
      headway fleet publish my-bundle --dir fleet --wait 120

    Devices register themselves when their agents connect to the same broker.
    """


fleet.add_command(rollout)
fleet.add_command(precision_commands)
fleet.add_command(keys)
fleet.add_command(sign)
for _command in (devices, doctor, move_store, tls, enroll, renew, revoke, forget):
    fleet.add_command(_command)
for _command in (suspects, quarantine, release, classes, labels, retention):
    fleet.add_command(_command)

_dir_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The fleet's directory: database and release chunks.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


@fleet.command()
@_dir_option
@broker_options
@click.option(
    "--channel",
    "channels",
    multiple=True,
    default=("default",),
    show_default=True,
    help="A channel to serve: a product on like hardware. May be given several times.",
)
@database_options("Keep the fleet in this PostgreSQL database. Needed once, the directory remembers it")
@click.option(
    "--chunks-at", "chunks_url", metavar="URL",
    help="Keep releases' chunks there instead of in the directory: s3://bucket/fleet, or what else fsspec opens. "
    "Needed once; the directory remembers it.",
)  # fmt: skip
@click.option(
    "--page-port", type=click.IntRange(0, 65535), metavar="PORT",
    help="Show the fleet in a browser at http://127.0.0.1:PORT; 0 takes a free one.",
)  # fmt: skip
@click.option(
    "--chunks-port", type=click.IntRange(0, 65535), metavar="PORT",
    help="Also serve releases' chunks over HTTP: on 127.0.0.1, or after `headway fleet tls` to enrolled devices.",
)  # fmt: skip
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), metavar="PORT",
    help="Answer Prometheus at http://127.0.0.1:PORT/metrics; 0 takes a free one.",
)  # fmt: skip
@click.option(
    "--start-broker",
    is_flag=True,
    help="Run a Mosquitto of our own: on 127.0.0.1 only, or after `headway fleet tls` for the plant's network.",
)
@_json_option
def serve(
    directory: Path,
    channels: Sequence[str],
    url: str | None,
    url_file: Path | None,
    chunks_url: str | None,
    page_port: int | None,
    chunks_port: int | None,
    metrics_port: int | None,
    start_broker: bool,
    as_json: bool,
    **way: Any,
) -> None:
    """Serve the fleet until Ctrl-C.

    Stores every device's labels, acknowledges them once they are on disk, and sends each device what the others
    learned. Announces releases that `headway fleet publish` stores in the same directory.

    Ends with exit code 2 when there is no broker or database at the start; one that goes away later is waited for.
    """
    from sdk.fleet.blobs import name_place
    from sdk.fleet.broker import Mosquitto, Reviver, own_broker
    from sdk.fleet.expiry import Watch
    from sdk.fleet.metrics import HOST as METRICS_HOST
    from sdk.fleet.metrics import FleetMetrics
    from sdk.fleet.schema import begin_in
    from sdk.fleet.service import FleetService
    from sdk.fleet.store import FleetStore
    from sdk.trust.repository import OnlineTrust

    settings, secured = broker_settings(directory, here=start_broker, **way)
    for channel in channels:
        _check_channel_name(channel)
    if (database := address_of(url, url_file)) is not None:
        begin_in(directory, database)
    if chunks_url is not None:
        name_place(directory, chunks_url)
    report = _report_json if as_json else _report_text
    own: contextlib.AbstractContextManager[Mosquitto | None] = contextlib.nullcontext()
    if start_broker:
        own = secure_broker(directory) if secured else own_broker(settings)
    trust = OnlineTrust(open_trust(directory)) if has_trust(directory) else None
    with (
        stop_on_signals() as stop,
        FleetStore(directory) as store,
        own as broker_here,
        contextlib.ExitStack() as page,
    ):
        counted = FleetMetrics(store, lambda: service.queued, lambda: service.hears_broker)
        service = FleetService(store, settings, channels, counted.before(report), trust)
        watch, reviver = Watch(directory, report), Reviver(broker_here, report)

        def look(utc: float) -> None:
            watch.look(utc)
            reviver.look()

        service.every_turn = look
        if metrics_port is not None:
            store.on_commit = counted.committed
            port = page.enter_context(counted.serving(metrics_port))
            report("metrics", {"address": f"http://{METRICS_HOST}:{port}/metrics"})
        if page_port is not None:
            from sdk.fleet.page.app import HOST, make_app
            from sdk.fleet.page.view import FleetView
            from sdk.web.server import serving_page

            address = page.enter_context(serving_page(make_app(FleetView(store)), HOST, page_port))
            report("page", {"address": address})
        if chunks_port is not None:
            from sdk.fleet.chunk_server import serving_chunks

            folder = tls_folder(directory) if secured else None
            address = page.enter_context(serving_chunks(directory / "chunks", chunks_port, folder))
            report("chunks", {"address": address})
        service.run(stop.event)
    report("stopped", {"dir": str(directory)})


@fleet.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_dir_option
@click.option("--channel", default="default", show_default=True, help="Whose devices should run it.")
@click.option(
    "--precision",
    help="Which precision the channel runs; the bundle's first by default. Another one makes it another release.",
)
@click.option(
    "--wait", "wait_s", type=float, metavar="SECONDS", help="Wait until every device took it or gave up."
)
@click.option(
    "--accept-licence",
    multiple=True,
    metavar="ID",
    help="Publish although the weights' licence is this one, unknown or not on the fleet's list. Recorded.",
)
@click.option(
    "--waves",
    metavar="1,10%,100%",
    help="Roll it out in waves: numbers or shares of the channel, or device names.",
)
@click.option(
    "--approve", is_flag=True, help="Each wave after the first waits for `headway fleet rollout approve`."
)
@click.option(
    "--soak", "soak_minutes", type=float, default=10.0, show_default=True, metavar="MINUTES",
    help="How long a wave must do well before the next begins.",
)  # fmt: skip
@click.option(
    "--deadline", "deadline_hours", type=float, default=24.0, show_default=True, metavar="HOURS",
    help="A device of a wave that is there and has not taken it by then has failed.",
)  # fmt: skip
@click.option(
    "--max-failed", type=int, default=0, show_default=True, help="So many devices may fail before it halts."
)
@click.option(
    "--max-recall-drop", type=float, default=5.0, show_default=True, metavar="POINTS",
    help="A device fails that knows its own labels less well by more than this.",
)  # fmt: skip
@click.option(
    "--max-unknown-rise", type=float, default=10.0, show_default=True, metavar="POINTS",
    help="A device fails that calls this many more of a hundred parts unknown.",
)  # fmt: skip
@click.option(
    "--max-latency-ratio",
    type=float,
    default=2.0,
    show_default=True,
    help="A device fails that takes longer by this.",
)
@lost_option
@keys_option
@passphrase_option
@click.option(
    "--new-classes",
    is_flag=True,
    help="Publish although classes have the names of those in use, and other ids: labels stay with the old ones.",
)
@uncompared_option
@click.option(
    "--unsigned",
    is_flag=True,
    help="Without the keys at hand: write what is to be signed with `headway fleet sign`, publish nothing yet.",
)
@_json_option
def publish(
    bundle: Path,
    directory: Path,
    channel: str,
    precision: str | None,
    wait_s: float | None,
    accept_licence: Sequence[str],
    keys_dir: Path | None,
    passphrase_file: Path | None,
    new_classes: bool,
    uncompared: bool,
    unsigned: bool,
    as_json: bool,
    waves: str | None,
    approve: bool,
    max_lost_labels: int,
    **limits: Any,
) -> None:
    """Publish BUNDLE to a channel's devices.

    Where the fleet has keys (`headway fleet keys init`), a release is signed: name the folder with the targets key
    with --keys.

    Checks the bundle, stores it in the fleet's directory and assigns it to every device of the channel. A running
    `headway fleet serve` announces it within a second; without one it is announced when one starts.

    The licence of the bundle's weights must be one that asks for attribution at most, or one that `licences.txt`
    in the fleet's directory names: SPDX ids, one a line.

    Where it has another feature space, each device says the codes of its labelled pictures anew. Labels whose
    pictures no device has any more would count no more: it is refused, unless --max-lost-labels allows so many.

    Its classes must be those that the channel's labels are of, by their ids: what is exported anew for a fleet
    that runs is exported with --classes-from the bundle that it replaces. Else it is refused, or with
    --new-classes published beside them; `headway fleet classes merge` makes each pair one.

    Both are compared with the channel's current release. Where its chunks here are lost or damaged, its own bundle
    puts them back; another one is refused, unless --uncompared says that nobody needs to look.

    With --waves it reaches a few devices first, and more while these do as well with it as before:

    \b
      headway fleet publish my-bundle --dir fleet --waves 1,10%,100% --soak 60
      headway fleet rollout show --dir fleet --watch
    """
    from sdk import licences
    from sdk.bundle import Bundle
    from sdk.fleet.precision import serving
    from sdk.fleet.store import FleetStore

    _check_channel_name(channel)
    plan = plan_of(waves, approve=approve, max_lost_labels=max_lost_labels, **limits)
    if plan is not None and wait_s is not None:
        raise FleetError("waves take their time", hint="Watch them: headway fleet rollout show --dir DIR --watch.")
    check_keys(directory, keys_dir)
    if unsigned:
        open_trust(directory)  # refuses, before a mistyped --dir becomes a fleet
    opened = Bundle.open(bundle)
    ruling = licences.rule(opened, licences.read_list(directory), accept_licence)
    with tempfile.TemporaryDirectory(prefix="headway-publish-") as scratch, FleetStore(directory) as store:
        if precision is not None:
            opened = serving(opened, precision, Path(scratch) / "bundle")
        signed = has_trust(directory)
        compared = compare(
            store,
            channel,
            opened,
            precision,
            max_lost_labels=max_lost_labels,
            new_classes=new_classes,
            uncompared=uncompared,
        )
        if unsigned:
            to_sign = publish_unsigned(store, opened, channel=channel, plan=plan)
            click.echo(f"nothing is published yet; to be signed: {to_sign}")
            click.echo(f"carry it to the targets key, and there: headway fleet sign {to_sign.name} --keys KEYS")
            click.echo(f"carry it back, and here: headway fleet sign {to_sign} --dir {directory}")
            compared.say()
            return
        publication = publish_bundle(
            store,
            opened,
            channel=channel,
            keys_dir=keys_dir,
            passphrase_file=passphrase_file,
            plan=plan,
        )
        if ruling.accepted is not None:
            licences.record(directory, opened, ruling)
        ref, served = publication.ref, store.served()
        if not as_json:
            say(f"published {ref.name} as release {ref.release_id[:12]} on channel {channel}")
            click.echo(
                f"weights: {opened.manifest.lineage.weights_source}; licence: {ruling.spdx or ruling.stated}"
            )
            compared.say()
            if plan is not None:
                click.echo(
                    f"in waves of {', '.join(plan.waves)}; see: headway fleet rollout show --dir {directory}"
                )
            if not signed:
                click.echo("unsigned: whoever reaches the broker can publish too; see `headway fleet keys init`")
            if not served:
                click.echo(
                    f"no fleet service runs on this directory; start one: headway fleet serve --dir {directory}"
                )
            if elsewhere := _others_only(store, channel):
                click.echo(
                    f"no device is on channel {channel} yet; those of this fleet are on: " + ", ".join(elsewhere)
                )
        rows = [] if wait_s is None else wait_for_devices(store, publication, wait_s, quiet=as_json)
        if as_json:
            _echo_json(
                {
                    "release_id": ref.release_id,
                    "name": ref.name,
                    "size_bytes": ref.size_bytes,
                    "channel": channel,
                    "space": publication.space,
                    "served": served,
                    "signed": signed,
                    "compared": compared.known,
                    "licence": dataclasses.asdict(ruling),
                    "devices": rows,
                }
            )
    if wait_s is not None:
        check_outcome(rows, wait_s)


@fleet.command(short_help="Show the last records of a channel.")
@_dir_option
@click.option("--channel", default="default", show_default=True)
@click.option("--last", type=click.IntRange(1), default=20, show_default=True, help="How many records.")
@_json_option
def log(directory: Path, channel: str, last: int, as_json: bool) -> None:
    """Show the last records of a channel's union of label logs: who said what, in the order of arrival."""
    with open_fleet(directory) as store, store.read() as ledger:
        if channel not in ledger.channels():
            raise FleetError(
                f"there is no channel {channel}", hint=f"There are: {', '.join(ledger.channels()) or 'none yet'}."
            )
        if not ledger.log_length(channel) and not as_json:
            click.echo(f"nothing was said on channel {channel} yet")
        position = max(1, ledger.log_length(channel) - last + 1)
        while records := ledger.records(channel, position):
            for i, record in enumerate(records):
                line = _log_line(position + i, record)
                if as_json:
                    _echo_json(line)
                else:
                    said = " ".join(f"{name}={str(value)[:12]}" for name, value in line["body"].items())
                    who = f"{line['device']} #{line['seq']}"
                    say(f"{line['position']:>8}  {_utc(line['wall_time_utc'])}  {who}  {line['kind']}  {said}")
            position += len(records)


def _others_only(store: FleetStore, channel: str) -> list[str]:
    """Return the channels that devices are on, where none is on this one: it may be mistyped."""
    with store.read() as ledger:
        there = sorted({device.channel for device in ledger.devices()})
    return [] if channel in there else there


def _log_line(position: int, record: Record) -> dict[str, Any]:
    entry, body = record.entry, record.entry.body
    said = {name: getattr(body, name) for name in body.__struct_fields__}
    withdrawn = "class_id" in said and said["class_id"] is None
    return {
        "position": position,
        "device": entry.device,
        "seq": entry.seq,
        "counter": entry.counter,
        "wall_time_utc": entry.wall_time_us / 1e6,
        "kind": "withdraw" if withdrawn else body.__struct_config__.tag,
        "body": {name: value.hex() if isinstance(value, bytes) else value for name, value in said.items()},
    }


def fleet_overview(store: FleetStore, channel: str | None = None) -> dict[str, Any]:
    """Return channels and devices with all they say of themselves, and what ends soon, ready for JSON."""
    from sdk.expiry import DAY_S
    from sdk.fleet.expiry import ending
    from sdk.fleet.expiry import row as expiry_row

    with store.read() as ledger:
        channels = [name for name in ledger.channels() if channel in (None, name)]
        current = {name: ledger.current(name) for name in channels}
        lengths = {name: ledger.log_length(name) for name in channels}
        known = ledger.devices(channel, revoked=True)
        release_names = ledger.release_names()
        away = ledger.broker_away()
        said = {name: ledger.said_bytes(name, time.time() - DAY_S) for name in channels}
    learned: dict[str, Learned | None] = {}
    damaged: dict[str, str] = {}
    for name in channels:
        try:
            learned[name] = store.learned(name)
        except (BundleError, StoreCorrupt) as error:  # who is there, and how, is known all the same
            learned[name], damaged[name] = None, str(error)
    live = {name: None if found is None else found.live for name, found in learned.items()}
    holds = [hold_row(hold) for found in learned.values() if found is not None for hold in found.holds]
    folded = [found for found in learned.values() if found is not None]
    merged = {device: words for found in folded for device, words in merged_words(found).items()}
    now_utc = time.time()
    return {
        "broker_away": None if away is None else dataclasses.asdict(away),
        "refusal": None if (refusal := store.refusal()) is None else msgspec.to_builtins(refusal),
        "ends": [expiry_row(one, now_utc) for one in ending(store.directory, now_utc)],
        "channels": [
            {
                **_channel_row(name, current[name], learned[name], lengths[name]),
                "damaged": damaged.get(name),
            }
            for name in channels
        ],
        "devices": [
            {
                **_device_row(device, live.get(device.channel), current[device.channel], release_names),
                "codeless_labels": _codeless(learned.get(device.channel), device.device),
                "foreign_codes": _foreign(learned.get(device.channel), device.device),
                "said_bytes": said.get(device.channel, {}).get(device.device, 0),
                "presence": presence(device, heard=away is None),
                "quarantine": [hold for hold in holds if hold["device"] == device.device],
                "merged": merged.get(device.device),
            }
            for device in known
        ],
    }


def _codeless(learned: Learned | None, device: str) -> int:
    return 0 if learned is None else sum(one == device for one in learned.codeless.values())


def _foreign(learned: Learned | None, device: str) -> int:
    return 0 if learned is None else learned.foreign.get(device, 0)


def _channel_row(
    name: str, publication: Publication | None, learned: Learned | None, log_length: int
) -> dict[str, Any]:
    live_set = None if learned is None else learned.live
    return {
        "channel": name,
        "release": None if publication is None else publication.ref.name,
        "release_id": None if publication is None else publication.ref.release_id,
        "space": None if publication is None else publication.space,
        "live_set_digest": None if live_set is None else live_set.digest,
        "live_samples": 0 if live_set is None else len(live_set),
        "unapplied_labels": 0 if live_set is None else live_set.unapplied,
        "refused_records": 0 if learned is None else learned.refused,
        "codeless_labels": {} if learned is None else dict(Counter(learned.codeless.values())),
        "erased_labels": 0 if learned is None else len(learned.erased),
        "log_length": log_length,
    }


def _device_row(
    device: Device, live_set: LiveSet | None, current: Publication | None, release_names: dict[str, str]
) -> dict[str, Any]:
    state = device.state
    runs_it = current is not None and state.release_id == current.ref.release_id
    other_precision = runs_it and current is not None and not current.served_by(state)
    comparable = live_set is not None and state.space == live_set.space
    said = live_set is not None and comparable and state.head_digest is not None
    return {
        "device": device.device,
        "channel": device.channel,
        "online": state.online,
        "revoked_utc": device.revoked_utc,
        "agent_version": state.agent_version,
        "release": release_names.get(state.release_id or "", state.release_id),
        "release_id": state.release_id,
        "space": state.space,
        "precision": state.precision,
        "precision_fixed": state.precision_fixed,
        "other_precision": other_precision,
        "head_state": state.head_state.value,
        "live_set_digest": state.live_set_digest,
        "live_samples": state.live_samples,
        "head_digest": state.head_digest,
        "head_samples": state.head_samples,
        "head_agrees": state.head_digest == live_set.digest if live_set and said else None,
        "taken_back": state.taken_back,
        "trust": state.trust,
        "in_sync": state.live_set_digest == live_set.digest if live_set and comparable else None,
        "outbox": state.outbox,
        "own_labels": state.own_labels,
        "labelled_pictures": state.labelled_pictures,
        "acknowledged": device.acknowledged,
        "log_position": state.log_position,
        "last_seen_utc": device.last_seen_utc,
        "refused": device.refused,
        "faults": state.faults,
        "quality": None if state.quality is None else msgspec.to_builtins(state.quality),
    }


def open_fleet(directory: Path) -> FleetStore:
    """Return the fleet that a directory holds.

    Raises:
        FleetError: it holds none.
    """
    from sdk.fleet.store import FleetStore

    check_fleet(directory)
    return FleetStore(directory)


def check_fleet(directory: Path) -> None:
    """Check that a directory holds a fleet.

    Raises:
        FleetError: it holds none.
    """
    from sdk.fleet.database import holds_fleet

    if not holds_fleet(directory):
        raise FleetError(
            f"{directory} holds no fleet", hint="`headway fleet serve` or `publish` with this --dir makes one."
        )


def _check_channel_name(channel: str) -> None:
    from sdk.wire import ChannelName

    try:
        msgspec.convert(channel, ChannelName)
    except msgspec.ValidationError as error:
        raise FleetError(
            f"{channel[:80]!r} is no channel name", hint="Use up to 64 of a-z, 0-9, '.', '_' and '-'."
        ) from error


def _report_json(kind: str, more: dict[str, Any]) -> None:
    _echo_json({"event": kind, "utc": time.time(), **more})


def _report_text(kind: str, more: dict[str, Any]) -> None:
    if kind == "ready":
        click.echo(f"fleet service ready on {more['broker']}; Ctrl-C stops it")
    elif kind == "metrics":
        click.echo(f"Prometheus is answered at {more['address']}")
    elif kind == "page":
        click.echo(f"the fleet's page is at {more['address']}")
    elif kind not in ("connected", "reseeding"):
        words = ", ".join(
            f"{key} {str(value)[: MAX_SENTENCE if key in _SENTENCES else 80]}"
            for key, value in more.items()
            if value not in ("", None)
        )
        say(f"{_utc(time.time())}  {kind}: {words}")


def _echo_json(value: dict[str, Any]) -> None:
    click.echo(msgspec.json.encode(value))


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")
