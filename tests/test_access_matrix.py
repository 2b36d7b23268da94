"""Who may say and hear what: every party, every topic of the protocol, both ways, at a real Mosquitto.

The table of docs/trust.md, section 7, is what is expected, and the topics are `sdk.fleet.asyncapi.CHANNELS`: one
that is new there and not in the table fails here. Client ids, revocation and expiry are `test_enroll`'s.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Final

import pytest

from sdk.errors import BrokerError
from sdk.fleet.access import secure_config
from sdk.fleet.asyncapi import CHANNELS, Channel
from sdk.fleet.broker import Mosquitto, find_mosquitto
from sdk.fleet.cli_enroll import secure_broker, tls_folder
from sdk.fleet.service import FleetService
from sdk.fleet.store import FleetStore
from sdk.mqtt import Message, MqttSession, MqttSettings
from sdk.wire import Topics, Want, encode_json
from tests.simulators import LiveDevice, wait_for
from tests.test_enroll import Plant, lets_in, without
from tests.test_trust_live import headway

pytestmark = pytest.mark.broker

T: Final = Topics()
GUIDE: Final = Path(__file__).parents[1] / "docs" / "trust.md"
DEVICES: Final = {"a": "default", "b": "default", "c": "castings"}
SESSIONS: Final = ("", ".chunks", ".trigger")
SERVICE: Final = "fleet.service"
AUDITOR: Final = "auditor"
PARTIES: Final = (*(device + session for device, session in product(DEVICES, SESSIONS)), SERVICE)
COLUMNS: Final = 6
"""Of the table: a device's three sessions, other devices, the service, nobody."""
NAMES_NONE: Final = "names none"
ELSE: Final = "anything else"
WILDCARDS: Final = ("#", f"{T.prefix}/#", f"{T.prefix}/dev/+/+/+", "$SYS/#")
AUDIT: Final = f"""
user {AUDITOR}
topic readwrite #
pattern read fence/%u
"""
"""For the test: a party that says and hears everything, and topics on which each hears that it has heard all."""

Matrix = frozenset[tuple[str, str, str]]
"""What is possible: party, topic, `says` or `hears`."""
SAYS, HEARS = "says", "hears"


# What is expected


def table() -> dict[str, list[str]]:
    """Return the cells of the guide's table by topic."""
    rows = re.findall(r"^\| (?:`([a-z{][^`]*)`|(anything else)[^|]*) \|(.*)\|$", GUIDE.read_text("utf-8"), re.M)
    return {topic or other: [cell.strip() for cell in cells.split("|")] for topic, other, cells in rows}


def instances(channel: Channel) -> Mapping[str, str]:
    """Return the topics of one kind, and the device or channel that each names."""
    if channel.parameter == "device":
        named: Sequence[str] = tuple(DEVICES)
    elif channel.parameter == "channel":
        named = tuple(dict.fromkeys(DEVICES.values()))
    else:
        named = ("",) if channel.parameter is None else ("ab" * 32,)
    return {channel.topic(T, *([name] if name else [])): name for name in named}


def row_of(channel: Channel) -> str:
    return channel.address.removeprefix("{prefix}/")


def column_of(party: str, channel: Channel, name: str) -> int:
    """Return the table's column that speaks of this party and a topic that names this device or channel."""
    if party == SERVICE:
        return 4
    device, _, session = party.partition(".")
    meant = {"device": device, "channel": DEVICES[device]}.get(channel.parameter or "", name)
    return ("", "chunks", "trigger").index(session) if meant == name else 3


def expected() -> Matrix:
    cells = table()
    return frozenset(
        (party, topic, verb)
        for channel in CHANNELS
        for topic, name in instances(channel).items()
        for party in PARTIES
        for verb in (SAYS, HEARS)
        if verb in cells[row_of(channel)][column_of(party, channel, name)]
    )


TOPICS: Final = tuple(topic for channel in CHANNELS for topic in instances(channel))
INVENTED: Final = (f"{T.prefix}/dev/a/up/invented", f"{T.prefix}/chunk", f"{T.prefix}/dev/a", "elsewhere")
EVERYTHING: Final = frozenset(product(PARTIES, (*TOPICS, *INVENTED), (SAYS, HEARS)))


def test_the_table_has_each_topic_of_the_protocol_once() -> None:
    assert sorted(table()) == sorted([*map(row_of, CHANNELS), ELSE])


def test_the_table_refuses_what_it_does_not_name() -> None:
    for topic, cells in table().items():
        assert len(cells) == COLUMNS, topic
        assert set(cells) <= {"", SAYS, HEARS, f"{SAYS}, {HEARS}", NAMES_NONE}, topic
        assert cells[5] == "", "nobody without a certificate"
        assert cells[3] in ("", NAMES_NONE), "no device in another's place"
    assert not any(table()[ELSE])


# What is possible


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """A fleet of three devices on two channels, with a party of the test's own beside them."""
    try:
        find_mosquitto()
    except BrokerError as error:
        pytest.skip(f"{error}: {error.hint}")
    folder = tmp_path_factory.mktemp("matrix")
    assert headway("fleet", "tls", "--dir", folder / "fleet", "--host", "127.0.0.1") == 0
    (tls_folder(folder / "fleet") / "acl.local").write_text(AUDIT)
    for device, channel in {AUDITOR: "default", **DEVICES}.items():
        arguments = ["enroll", device, "--channel", channel, "--dir", folder / "fleet", "--out", folder / device]
        assert headway("fleet", *arguments) == 0
    with secure_broker(folder / "fleet", port=0, host="127.0.0.1") as broker:
        yield Plant(folder, broker)


def settings_of(plant: Plant, party: str, port: int) -> MqttSettings:
    """Return how a party connects: as the files say that were made for it."""
    if party == SERVICE:
        return replace(plant.service, port=port, session_expiry_s=0)
    device, _, session = party.partition(".")
    folder = plant.folder / device
    return replace(
        plant.service,
        port=port,
        session_expiry_s=0,
        cert_file=folder / f"device{'-' * bool(session)}{session}.pem",
        key_file=folder / "device.key",
    )


class Heard:
    """A party's session, and what came by topic."""

    def __init__(self, settings: MqttSettings, party: str, listens: Sequence[str]) -> None:
        self.party = party
        self.came: defaultdict[bytes, set[str]] = defaultdict(set)
        self.session = MqttSession(settings, party, on_message=self._hear)
        self.session.subscribe(listens)
        self.session.connect(30.0)

    def _hear(self, message: Message) -> None:
        self.came[message.payload].add(message.topic)


def measured(plant: Plant, port: int) -> Matrix:
    """Let every party say and hear everything; return what the broker let through."""
    tried = (*TOPICS, *INVENTED)
    found: set[tuple[str, str, str]] = set()
    with contextlib.ExitStack() as stack:

        def enter(party: str, listens: Sequence[str]) -> Heard:
            heard = Heard(settings_of(plant, party, port), party, listens)
            stack.callback(heard.session.close)
            return heard

        auditor = enter(AUDITOR, ["#"])
        say = auditor.session.publish
        for topic in tried:
            say(topic, b"kept", retain=True)
        fences = {party: f"fence/{party}" for party in PARTIES}
        for fence in fences.values():
            say(fence, b"kept", retain=True)
        wait_for(lambda: auditor.session.pending_bytes == 0, what="what is kept")
        parties = {
            party: enter(party, [*tried, *WILDCARDS, fences[party]]) for party in PARTIES
        }  # one packet each: who hears its fence is subscribed to all of it
        wait_for(lambda: all(fences[name] in each.came[b"kept"] for name, each in parties.items()), what="fences")
        for topic in (*tried, *fences.values()):
            say(topic, b"new")
        wait_for(lambda: all(fences[name] in each.came[b"new"] for name, each in parties.items()), what="fences")
        for party, each in parties.items():
            for topic in tried:
                each.session.publish(topic, party.encode())
        wait_for(lambda: all(each.session.pending_bytes == 0 for each in parties.values()), what="what was said")
        say(f"fence/{AUDITOR}", b"end")
        wait_for(lambda: auditor.came[b"end"], what="the end of it")
        for party, each in parties.items():
            # The broker must treat what it kept and what comes alike, and let no wildcard hear more.
            assert each.came[b"kept"] == each.came[b"new"], party
            every = set().union(*each.came.values()) - {fences[party]}
            found |= {(party, topic, HEARS) for topic in every if not topic.startswith("fence/")}
            found |= {(party, topic, SAYS) for topic in auditor.came[party.encode()]}
    return frozenset(found)


def test_every_party_may_do_what_the_table_says_and_nothing_else(made: Plant) -> None:
    assert measured(made, made.broker.port) == expected()


def test_without_the_access_list_every_party_may_do_everything(made: Plant) -> None:
    """The control: each refusal above is the list's."""
    weaken: Callable[[str], str] = without("acl_file")
    folder = tls_folder(made.fleet)
    with Mosquitto(
        config=lambda port: weaken(secure_config(port, folder, host="127.0.0.1", user="root"))
    ) as broker:
        assert measured(made, broker.port) >= EVERYTHING


def test_a_certificate_is_good_for_its_own_channels_union_only(made: Plant) -> None:
    """Topics alone do not say so: each device writes its own state, and that names a channel."""
    events: list[tuple[str, Mapping[str, object]]] = []
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(FleetStore(made.fleet))
        channels = tuple(dict.fromkeys(DEVICES.values()))
        service = FleetService(store, made.service, channels, lambda kind, more: events.append((kind, more)))
        thread = threading.Thread(target=service.run, args=(stop,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        wait_for(lambda: "ready" in [kind for kind, _ in events], what="the service")
        good = stack.enter_context(LiveDevice(settings_of(made, "a", made.broker.port), "a", "default"))
        good.label(1)
        wait_for(lambda: good.acknowledged, what="labels of the channel")
        spy = stack.enter_context(LiveDevice(settings_of(made, "c", made.broker.port), "c", "default"))
        spy.label(1)
        spy.session.publish(T.up_want("c"), encode_json(Want(channel="default", log_from=1)))
        wait_for(lambda: "stranger" in [kind for kind, _ in events], what="the service to hear of it")
        wait_for(lambda: not spy.session.pending_bytes, what="what it says")
        good.label(2)  # after all of that, at the service too
        wait_for(lambda: not good.outbox, what="labels of the channel")
        assert (spy.acknowledged, spy.union) == (0, [])
        with store.read() as ledger:
            assert ledger.device("c") is None
            assert {record.entry.device for record in ledger.records("default", 1)} == {"a"}


def test_without_a_certificate_there_is_no_session(made: Plant) -> None:
    known = settings_of(made, "a", made.broker.port)
    assert not lets_in(replace(known, cert_file=None, key_file=None))
    assert lets_in(known)  # the control
