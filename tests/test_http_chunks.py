"""Chunks over HTTP: a real server that lies, drips, dies or has nothing, and the broker that makes up for it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from device_agent.site_file import parse_site
from sdk.chunks import ChunkStore
from sdk.errors import ConfigError
from sdk.fetch import ChunkFetcher, Fetched
from sdk.fleet.broker import Mosquitto
from sdk.fleet.certificates import Authority
from sdk.fleet.chunk_server import serving_chunks
from sdk.http_chunks import HttpChunks, HttpLimits
from sdk.mqtt import MqttSession, MqttSettings
from sdk.wire import MAX_CHUNK_BYTES, Topics
from tests.simulators import leave_landed, make_release, same_files

SIZES = {"backbone.int8.onnx": 900_000, "samples.int8.safetensors": 70_001, "card.md": 17}
QUICK = HttpLimits(connect_s=0.5, silent_s=0.4, chunk_s=0.8)
PATIENT = HttpLimits(connect_s=60.0, silent_s=60.0, chunk_s=60.0)
"""For servers that are good, on a machine that is busy."""
NO_BROKER = MqttSettings(port=1)

Answer = Callable[[http.server.BaseHTTPRequestHandler, bytes], None]


@dataclass
class Web:
    """A web server with chunks, and what it does instead of serving them well."""

    chunks: dict[str, bytes]
    answer: Answer
    asked: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/chunks/"


def well(to: http.server.BaseHTTPRequestHandler, chunk: bytes) -> None:
    to.send_response(200)
    to.send_header("Content-Length", str(len(chunk)))
    to.end_headers()
    to.wfile.write(chunk)


@contextlib.contextmanager
def web(chunks: dict[str, bytes], answer: Answer = well) -> Iterator[Web]:
    made = Web(chunks, answer)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            before, _, digest = self.path.rpartition("/")
            if before != "/chunks":
                made.elsewhere.append(self.path)
                well(self, b"from elsewhere")
                return
            made.asked.append(digest)
            if digest not in made.chunks:
                self.send_error(404)
                return
            with contextlib.suppress(OSError):  # the client has gone
                made.answer(self, made.chunks[digest])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


def fetcher(
    folder: Path, url: str, broker: MqttSettings = NO_BROKER, limits: HttpLimits = PATIENT
) -> ChunkFetcher:
    source = HttpChunks(url, limits=limits)
    return ChunkFetcher(broker, "line-1", "default", folder / "chunks", source=source)


# -- a server that does what it should


def test_a_release_comes_over_http_without_a_broker(tmp_path: Path) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    with web(chunks) as server:
        done = fetcher(tmp_path, server.url).fetch(release.ref, tmp_path / "slot")
        assert same_files(source, tmp_path / "slot")
        assert done is not None
        assert (done.received_bytes, done.source_bytes) == (0, sum(map(len, chunks.values())))
        assert sorted(server.asked) == sorted(chunks)


def test_what_is_on_disk_is_not_asked_for_again(tmp_path: Path) -> None:
    release, chunks, _ = make_release(tmp_path, SIZES)
    kept = release.digests()[:5]
    leave_landed(tmp_path / "chunks", release, chunks, kept)
    with web(chunks) as server:
        fetcher(tmp_path, server.url).fetch(release.ref, tmp_path / "slot")
        assert set(server.asked) == set(chunks) - set(kept)


def test_a_stopped_download_goes_on_from_there(tmp_path: Path) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    stop = threading.Event()

    def stop_at_half(done: int, total: int) -> None:
        if done > total // 2:
            stop.set()

    with web(chunks) as server:
        one = fetcher(tmp_path, server.url)
        assert one.fetch(release.ref, tmp_path / "slot", progress=stop_at_half, stop=stop) is None
        before = len(server.asked)
        assert before < len(chunks)
        one.fetch(release.ref, tmp_path / "slot")
        assert len(server.asked) <= len(chunks) + QUICK.connections  # those on their way when it stopped
        assert same_files(source, tmp_path / "slot")


# -- servers that do not


def wrong(to: http.server.BaseHTTPRequestHandler, chunk: bytes) -> None:
    well(to, bytes([chunk[0] ^ 1]) + chunk[1:])


def short(to: http.server.BaseHTTPRequestHandler, chunk: bytes) -> None:
    """It dies midway."""
    to.send_response(200)
    to.send_header("Content-Length", str(len(chunk)))
    to.end_headers()
    to.wfile.write(chunk[: len(chunk) // 2])
    to.close_connection = True


def truncated(to: http.server.BaseHTTPRequestHandler, chunk: bytes) -> None:
    well(to, chunk[:-1])


def endless(to: http.server.BaseHTTPRequestHandler, chunk: bytes) -> None:
    to.send_response(200)
    to.send_header("Connection", "close")
    to.end_headers()
    to.wfile.write(chunk)
    while True:
        to.wfile.write(bytes(MAX_CHUNK_BYTES))


def drips(to: http.server.BaseHTTPRequestHandler, chunk: bytes) -> None:
    to.send_response(200)
    to.send_header("Content-Length", str(len(chunk)))
    to.end_headers()
    for at in range(100):
        to.wfile.write(chunk[at : at + 1])
        to.wfile.flush()
        time.sleep(0.1)  # below the patience between blocks, and far above that for a chunk


def drips_headers(to: http.server.BaseHTTPRequestHandler, _chunk: bytes) -> None:
    to.send_response(200)
    to.flush_headers()
    for at in range(100):
        to.wfile.write(b"x" if at else b"X-Late: ")
        to.wfile.flush()
        time.sleep(0.1)


def silent(to: http.server.BaseHTTPRequestHandler, _chunk: bytes) -> None:
    to.send_response(200)
    to.flush_headers()
    time.sleep(2.0)


def status(code: int) -> Answer:
    def answer(to: http.server.BaseHTTPRequestHandler, _chunk: bytes) -> None:
        to.send_response(code)
        if code in (301, 302, 307, 308):
            to.send_header("Location", "/elsewhere")
        to.send_header("Content-Length", "0")
        to.end_headers()

    return answer


def partly(to: http.server.BaseHTTPRequestHandler, chunk: bytes) -> None:
    to.send_response(206)
    to.send_header("Content-Range", f"bytes 0-9/{len(chunk)}")
    to.send_header("Content-Length", "10")
    to.end_headers()
    to.wfile.write(chunk[:10])


def zipped(to: http.server.BaseHTTPRequestHandler, chunk: bytes) -> None:
    """A bomb: it says that it is packed, and would unpack to more than a chunk."""
    import gzip

    packed = gzip.compress(bytes(50_000_000))
    assert len(packed) < MAX_CHUNK_BYTES
    to.send_response(200)
    to.send_header("Content-Encoding", "gzip")
    to.send_header("Content-Length", str(len(packed)))
    to.end_headers()
    to.wfile.write(packed)
    assert chunk


def gibberish(to: http.server.BaseHTTPRequestHandler, _chunk: bytes) -> None:
    to.wfile.write(b"\x16\x03\x01 SSH-2.0 \r\n\r\n")
    to.close_connection = True


BAD: dict[str, Answer] = {
    "wrong bytes": wrong,
    "dies midway": short,
    "a byte short": truncated,
    "endless": endless,
    "drips": drips,
    "drips headers": drips_headers,
    "silent": silent,
    "404": status(404),
    "416": status(416),
    "500": status(500),
    "401": status(401),
    "moved": status(301),
    "found elsewhere": status(302),
    "moved for good": status(308),
    "partial": partly,
    "a zip bomb": zipped,
    "no HTTP": gibberish,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_server_gives_nothing_and_the_attempt_ends(tmp_path: Path, name: str) -> None:
    """Nothing of what it sends is taken, no redirect followed, and it is given up after a few tries."""
    _, chunks, _ = make_release(tmp_path, SIZES)
    taken: list[str] = []
    with web(chunks, BAD[name]) as server:
        source = HttpChunks(server.url, limits=QUICK)
        came = source.fetch(list(chunks), lambda digest, _chunk: taken.append(digest), threading.Event())
        assert (came, taken, server.elsewhere) == (0, [], [])
        assert len(server.asked) <= QUICK.misses + QUICK.connections


@pytest.mark.broker
@pytest.mark.parametrize("name", ["wrong bytes", "404", "endless", "dies midway", "drips headers"])
def test_what_http_does_not_give_comes_from_the_broker(mosquitto: Mosquitto, tmp_path: Path, name: str) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    with MqttSession(mosquitto.settings, "server", on_message=lambda _message: None) as server:
        server.connect()
        for digest, chunk in chunks.items():
            server.publish(Topics().chunk(digest), chunk, retain=True)
    first = list(chunks)[:4]

    def halfway(to: http.server.BaseHTTPRequestHandler, chunk: bytes) -> None:
        good = any(chunks[digest] == chunk for digest in first)
        (well if good else BAD[name])(to, chunk)

    with web(chunks, halfway) as site:
        done = fetcher(tmp_path, site.url, mosquitto.settings, QUICK).fetch(release.ref, tmp_path / "slot")
    assert isinstance(done, Fetched)
    assert same_files(source, tmp_path / "slot")
    assert done.source_bytes + done.received_bytes >= sum(map(len, chunks.values()))
    assert done.received_bytes > 0


def test_no_server_at_all_is_no_loss() -> None:
    with web({}) as server:
        url = server.url
    assert HttpChunks(url, limits=QUICK).fetch(["0" * 64], lambda *_: None, threading.Event()) == 0


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://fleet/chunks/", "is no http address"),
        ("fleet/chunks", "is no http address"),
        ("https://", "is no http address"),
        ("https://fleet/chunks?token=1", "is no http address"),
        ("https://anna:secret@fleet/chunks/", "holds a user name"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        HttpChunks(url)


def test_certificates_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no file"):
        HttpChunks("https://fleet/chunks/", ca_file=tmp_path / "none.pem")


def test_a_site_without_a_broker_has_no_use_for_it(tmp_path: Path) -> None:
    text = 'device = "a"\n[camera]\nkind = "folder"\npath = "i"\n[chunks]\nurl = "http://127.0.0.1/"\n'
    with pytest.raises(ConfigError, match=r"\[chunks\] needs an \[mqtt\] table"):
        parse_site(text, tmp_path / "site.toml")


# -- the fleet's own server


def test_the_fleets_chunks_are_served_by_digest_and_nothing_else(tmp_path: Path) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    store = ChunkStore(tmp_path / "fleet" / "chunks")
    for digest, chunk in chunks.items():
        store.put(digest, chunk)
    (tmp_path / "fleet" / "secret").write_text("online key")
    (tmp_path / "fleet" / "chunks" / ".draft").write_text("half written")
    import urllib3

    with serving_chunks(tmp_path / "fleet" / "chunks", 0, None) as url:
        for path in ("", "../secret", "..%2Fsecret", ".draft", "0" * 64, "x" * 64, "A" * 64):
            assert urllib3.request("GET", url + path, redirect=False).status in (404, 405, 422), path
        fetcher(tmp_path, url).fetch(release.ref, tmp_path / "slot")
    assert same_files(source, tmp_path / "slot")


def enrolled(authority: Authority, name: str, folder: Path) -> tuple[Path, Path]:
    """Enrol a device; return the files of its certificate and key."""
    issued = authority.enroll(name)
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    cert.write_bytes(issued.certificates[1])
    key.write_bytes(issued.key)
    return cert, key


def test_over_tls_only_devices_of_this_fleet_are_served(tmp_path: Path) -> None:
    _, chunks, _ = make_release(tmp_path, SIZES)
    store = ChunkStore(tmp_path / "chunks")
    for digest, chunk in chunks.items():
        store.put(digest, chunk)
    folder, other = tmp_path / "tls", tmp_path / "other"
    authorities = {}
    for each in (folder, other):
        authorities[each] = Authority.create(each, ["127.0.0.1"])

    def device(name: str, of: Path) -> tuple[Path, Path]:
        return enrolled(authorities[of], name, tmp_path)

    ours, theirs, gone = device("line-1", folder), device("line-9", other), device("line-3", folder)
    authorities[folder].revoke("line-3")
    with serving_chunks(tmp_path / "chunks", 0, folder) as address:

        def came(mine: tuple[Path, Path] | None, server_ca: Path = folder) -> int:
            cert, key = mine or (None, None)
            client = HttpChunks(
                address, ca_file=server_ca / "ca.pem", cert_file=cert, key_file=key, limits=PATIENT
            )
            return client.fetch(list(chunks), lambda *_: None, threading.Event())

        assert address.startswith("https://")
        assert came(ours) == len(chunks)
        late = device("line-4", folder)
        assert came(late) == len(chunks), "the control: it was served until then"
        authorities[folder].revoke("line-4")
        assert came(late) == 0, "revoked while the server runs"
        assert came(ours) == len(chunks)
        assert came(theirs) == 0, "another fleet's certificate"
        assert came(None) == 0, "no certificate"
        assert came(gone) == 0, "revoked"
        assert came(ours, other) == 0, "the server is somebody else"


@contextlib.contextmanager
def open_line(address: str, tls: Path, mine: tuple[Path, Path]) -> Iterator[http.client.HTTPSConnection]:
    """Keep one TLS connection to a server of chunks, on which nothing is sent by itself."""
    context = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    context.load_cert_chain(*map(str, mine))
    host, port = address.removeprefix("https://").removesuffix("/chunks/").split(":")
    line = http.client.HTTPSConnection(host, int(port), context=context, timeout=60.0)
    line.connect()
    try:
        yield line
    finally:
        line.close()


def told(line: http.client.HTTPSConnection, digest: str) -> int:
    """Ask for a chunk on a connection that is open, and for no other."""
    assert line.sock is not None
    line.auto_open = 0
    line.request("GET", f"/chunks/{digest}")
    answer = line.getresponse()
    answer.read()
    return answer.status


def half_a_question(line: http.client.HTTPSConnection, digest: str) -> ssl.SSLSocket:
    """Begin to ask and leave it there; such a connection ends by no other timer of the server's."""
    assert isinstance(line.sock, ssl.SSLSocket)
    line.sock.sendall(f"GET /chunks/{digest} HTTP/1.1\r\n".encode())
    return line.sock


def has_ended(sock: ssl.SSLSocket) -> bool:
    """Wait for the other side's end, at most a minute."""
    try:
        return sock.recv(1) == b""
    except (ConnectionError, ssl.SSLError):
        return True


@contextlib.contextmanager
def with_lines(
    tmp_path: Path, count: int = 1
) -> Iterator[tuple[Authority, str, list[http.client.HTTPSConnection]]]:
    """Serve one chunk to devices line-1, line-2 and so on, each with an open connection that was answered.

    Gives who revokes them, the chunk's digest and the connections.
    """
    digest = hashlib.sha256(b"chunk").hexdigest()
    ChunkStore(tmp_path / "chunks").put(digest, b"chunk")
    authority = Authority.create(tmp_path / "tls", ["127.0.0.1"])
    devices = [enrolled(authority, f"line-{number}", tmp_path) for number in range(1, count + 1)]
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(serving_chunks(tmp_path / "chunks", 0, tmp_path / "tls"))
        lines = [stack.enter_context(open_line(address, tmp_path / "tls", device)) for device in devices]
        assert [told(line, digest) for line in lines] == [200] * count, "the control"
        yield authority, digest, lines


def test_an_open_connection_ends_when_its_certificate_is_revoked(tmp_path: Path) -> None:
    with with_lines(tmp_path, 2) as (authority, digest, (stays, ends)):
        other, one = half_a_question(stays, digest), half_a_question(ends, digest)
        authority.revoke("line-2")
        assert has_ended(one)
        other.sendall(b"Host: x\r\n\r\n")
        assert other.recv(12) == b"HTTP/1.1 200"


def test_a_revoked_device_that_goes_on_asking_is_cut_off(tmp_path: Path) -> None:
    with with_lines(tmp_path) as (authority, digest, (line,)):

        def ask_for_a_minute() -> None:
            deadline = time.monotonic() + 60.0
            while time.monotonic() < deadline:
                assert told(line, digest) == 200

        authority.revoke("line-1")
        with pytest.raises((ConnectionError, http.client.HTTPException, ssl.SSLError)):
            ask_for_a_minute()


def test_no_connection_stays_while_the_list_of_those_revoked_cannot_be_read(tmp_path: Path) -> None:
    with with_lines(tmp_path) as (_, digest, (line,)):
        mine = half_a_question(line, digest)
        (tmp_path / "tls" / "crl.pem").write_text("no list")
        assert has_ended(mine)
