"""Who is who at the broker: a certificate authority of the fleet's own, ECDSA P-256, in a folder.

    DIR/tls/ca.pem, ca.key           the authority; the key readable by its owner only
    DIR/tls/broker.pem, broker.key   the broker's, for the names it is reached by
    DIR/tls/service.pem, service.key the fleet service's
    DIR/tls/issued/                  a copy of every device's certificates, without keys
    DIR/tls/crl.pem                  what was revoked
    DIR/tls/lock                     held by whoever changes any of it, and the access list beside it

The broker takes a client's name, and the name of its session, from the certificate's common name. A device has up
to three sessions, and three certificates for one key: `<device>`, `<device>.chunks` and `<device>.trigger`. Device
ids have no dot, so no device can be called like another's second session, or like the service.

Rules this module keeps: keys are never overwritten; a name is issued once, until it is revoked. What is renewed is
a certificate, for the key that is there: nothing secret is carried, and its file is replaced whole. What the
broker reads keeps its owner, group and mode: the broker may run as another user.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sdk.durable import write_whole
from sdk.errors import KeyRefused
from sdk.pem import AUTHORITY_NAME, SESSIONS
from sdk.trust.keys import write_private

SERVICE_NAME: Final = "fleet.service"
AUTHORITY_LIFE: Final = timedelta(days=20 * 366)
CERTIFICATE_LIFE: Final = timedelta(days=5 * 366)
"""As long as the root's: one visit renews both. Theft is answered by `revoke`, not by waiting for the end."""
AUTHORITY_LEFT: Final = 2 * CERTIFICATE_LIFE
"""With less than this before it the authority is renewed along with the broker: each device is brought the new one
with its next certificates, before the old one ends."""
BACKDATED: Final = timedelta(days=1)
"""A device's clock may be behind the server's on the day of its enrolment."""

LOCK_NAME: Final = "lock"

Clock = Callable[[], datetime]


def _now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class Issued:
    """One party's key and its certificates, a device's in the order of `SESSIONS`; PEM."""

    key: bytes
    certificates: tuple[bytes, ...]


class Authority:
    """A fleet's certificate authority. Whoever changes something holds `changing` for as long as it takes.

    Args:
        folder: `tls/` in the fleet's directory.
        clock: Now, with a time zone.

    Raises:
        KeyRefused: the folder holds none, or its key does not open.
    """

    def __init__(self, folder: Path, *, clock: Clock = _now) -> None:
        self.folder = folder
        self._clock = clock
        try:
            self._certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise KeyRefused(
                f"{folder} holds no certificate authority", hint="`headway fleet tls` makes it."
            ) from error
        if not isinstance(key, EllipticCurvePrivateKey):
            raise KeyRefused(
                f"{folder / 'ca.key'} is no ECDSA key", hint="`headway fleet tls` makes the right kind."
            )
        self._key = key

    @classmethod
    def create(cls, folder: Path, hosts: Sequence[str], *, clock: Clock = _now) -> Authority:
        """Make the authority, and the broker's and the service's certificates.

        Args:
            folder: Made where it is missing.
            hosts: Names and addresses that the broker is reached by; this machine's own are added.
            clock: Now.

        Raises:
            KeyRefused: there is one already, or a host is none.
        """
        key = generate_private_key(SECP256R1())
        certificate = _own_certificate(key, clock())
        names = [_alternative(host) for host in dict.fromkeys([*hosts, "localhost", "127.0.0.1"])]
        write_private(folder / "ca.key", _private(key))
        (folder / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        authority = cls(folder, clock=clock)
        for party, common_name, alternatives in (("broker", hosts[0], names), ("service", SERVICE_NAME, None)):
            issued = authority._issue([common_name], alternatives)
            write_private(folder / f"{party}.key", issued.key)
            (folder / f"{party}.pem").write_bytes(issued.certificates[0])
        (folder / "issued").mkdir(exist_ok=True)
        authority._write_revoked([])
        return authority

    def enroll(self, device: str) -> Issued:
        """Return a device's key and its certificates; only the certificates are kept here.

        Raises:
            KeyRefused: the device has one that was not revoked, or they cannot be kept.
        """
        issued = self.prepare(device)
        self.keep(device, issued.certificates)
        return issued

    def prepare(self, device: str) -> Issued:
        """Return what `enroll` does, not kept yet: the device is enrolled with `keep`, or they are for `discard`.

        Raises:
            KeyRefused: the device has certificates that were not revoked.
        """
        self.check_new(device)
        return self._issue([device + session for session in SESSIONS], None)

    def keep(self, device: str, certificates: Sequence[bytes]) -> None:
        """Count a device as enrolled, with these certificates beside those that it has and that still count.

        Raises:
            KeyRefused: they cannot be written; it is as it was before.
        """
        file = self._issued(device)
        before = x509.load_pem_x509_certificates(file.read_bytes()) if file.is_file() else []
        # Those that still count stay, for `revoke`.
        kept = [one.public_bytes(Encoding.PEM) for one in before if one.not_valid_after_utc > self._clock()]
        try:
            write_whole(file, b"".join([*kept, *certificates]))
        except OSError as error:
            raise KeyRefused(f"{file}: {error.strerror}", hint="Check the disk and its space.") from error

    def discard(self, issued: Issued) -> None:
        """Let certificates count for nobody that were prepared and not kept: a copy may be on a lost medium.

        Raises:
            KeyRefused: the list cannot be written.
        """
        made = [x509.load_pem_x509_certificate(one).serial_number for one in issued.certificates]
        self._write_revoked([*self.revoked(), *made])

    def check_new(self, device: str) -> None:
        """Return where a device may be enrolled.

        Raises:
            KeyRefused: it has certificates that were not revoked.
        """
        if self._issued(device).exists():
            raise KeyRefused(
                f"{device} is enrolled already",
                hint=f"One id, one device. If its key is lost or stolen, first: headway fleet revoke {device}",
            )

    def renew(self, device: str) -> tuple[bytes, ...]:
        """Return new certificates for a device's key, in the order of `SESSIONS`, for `keep`; old ones stay good.

        Raises:
            KeyRefused: it has none.
        """
        file = self._issued(device)
        if not file.is_file():
            raise KeyRefused(f"{device} is not enrolled here", hint=f"First: headway fleet enroll {device}")
        before = x509.load_pem_x509_certificates(file.read_bytes())
        key = _public(before[-1])
        return tuple(self._certify(device + session, key, None).public_bytes(Encoding.PEM) for session in SESSIONS)

    def renew_servers(self, hosts: Sequence[str] = ()) -> list[str]:
        """Give broker and service new certificates for their keys, and the authority where its own end is near.

        The authority keeps its key, so what it has signed stays good, by its old certificate and by the new one.

        Args:
            hosts: Names and addresses by which the broker is reached from now on, beside those that it had:
                devices come by these until they are told.

        Returns:
            What was renewed.

        Raises:
            KeyRefused: a host is none, or a certificate is damaged or cannot be written.
        """
        renewed = ["broker", "service"]
        added = [_alternative(host) for host in hosts]
        if self._certificate.not_valid_after_utc - self._clock() < AUTHORITY_LEFT:
            self._certificate = _own_certificate(self._key, self._clock())
            write_for_broker(self.folder / "ca.pem", self._certificate.public_bytes(Encoding.PEM))
            renewed.insert(0, "authority")
        for party in ("broker", "service"):
            file = self.folder / f"{party}.pem"
            try:
                before = x509.load_pem_x509_certificate(file.read_bytes())
            except (OSError, ValueError) as error:
                raise KeyRefused(f"{file} is no certificate", hint="Restore the folder from a backup.") from error
            name = str(before.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
            try:
                names = [*before.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]
            except x509.ExtensionNotFound:
                names = None
            if names is not None:
                names += [one for one in dict.fromkeys(added) if one not in names]
            made = self._certify(name, _public(before), names)
            write_for_broker(file, made.public_bytes(Encoding.PEM))
        self._write_revoked(self.revoked())  # for as long as the authority, and servers read certificates again
        return renewed

    def revoke(self, device: str) -> None:
        """Let a device's certificates count no more. It may be done again, until the device is forgotten.

        Raises:
            KeyRefused: it has none, or the list cannot be written.
        """
        file = self._issued(device)
        if not file.is_file():
            raise KeyRefused(
                f"{device} is not enrolled here", hint="`headway fleet devices` lists the known ones."
            )
        serials = [one.serial_number for one in x509.load_pem_x509_certificates(file.read_bytes())]
        self._write_revoked([*dict.fromkeys([*self.revoked(), *serials])])

    def forget(self, device: str) -> None:
        """Let a device that was revoked be enrolled anew: the last step, after all who must know of it do."""
        self._issued(device).unlink(missing_ok=True)

    def enrolled(self) -> list[str]:
        """Return the names of the devices whose certificates count."""
        return sorted(file.stem for file in (self.folder / "issued").glob("*.pem"))

    def revoked(self) -> list[int]:
        """Return the serial numbers that count no more."""
        found = x509.load_pem_x509_crl((self.folder / "crl.pem").read_bytes())
        return [one.serial_number for one in found]

    def _issued(self, device: str) -> Path:
        return self.folder / "issued" / f"{device}.pem"

    def _issue(self, names: Sequence[str], alternatives: Sequence[x509.GeneralName] | None) -> Issued:
        """Return a new key with a certificate for each name; with alternatives it is a server's."""
        key = generate_private_key(SECP256R1())
        made = (self._certify(name, key.public_key(), alternatives).public_bytes(Encoding.PEM) for name in names)
        return Issued(_private(key), tuple(made))

    def _certify(
        self, name: str, key: EllipticCurvePublicKey, alternatives: Sequence[x509.GeneralName] | None
    ) -> x509.Certificate:
        now = self._clock()
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH if alternatives is None else ExtendedKeyUsageOID.SERVER_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + CERTIFICATE_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if alternatives is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self._key, SHA256())

    def _write_revoked(self, serials: Sequence[int]) -> None:
        """Write the list. It expires with the authority: a broker with an expired one refuses everybody."""
        now = self._clock()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - BACKDATED)
            .next_update(self._certificate.not_valid_after_utc)
        )
        for serial in serials:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(one)
        signed = builder.sign(self._key, SHA256())
        write_for_broker(self.folder / "crl.pem", signed.public_bytes(Encoding.PEM))


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Keep all others from changing a fleet's certificates and access list for the block.

    Args:
        folder: A fleet's `tls/`, which is there.

    Raises:
        KeyRefused: the folder is not this user's to change.
    """
    file = folder / LOCK_NAME
    with contextlib.ExitStack() as held:
        try:
            try:
                handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            except PermissionError:
                handle = os.open(file, os.O_RDONLY)  # root has made it; that is enough, but on NFS
            held.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise KeyRefused(f"{file}: {error.strerror}", hint="Run this as the user whose it is.") from error
        yield


def write_for_broker(file: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace a file that the broker reads, whole, and leave it readable by whoever could read it before.

    A Mosquitto that cannot read its access list does not start, and one that is told to reload goes on without one
    and lets everybody do everything (2.0.11).

    Args:
        file: In a fleet's `tls/`.
        content: All of it.
        mode: Of a file that was not there, before the process's umask.

    Raises:
        KeyRefused: it cannot be written, or not be left to whom it belongs; it is as it was before.
    """
    try:
        write_whole(file, content, keep_owner=True, mode=mode)
    except PermissionError as error:
        raise KeyRefused(
            f"{file}: {error.strerror}", hint=f"Run this as root, or as the user whose {file.name} is."
        ) from error
    except OSError as error:
        raise KeyRefused(f"{file}: {error.strerror}", hint="Check the disk and its space.") from error


def _own_certificate(key: EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AUTHORITY_NAME)])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )


def _public(certificate: x509.Certificate) -> EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, EllipticCurvePublicKey):
        raise KeyRefused("a certificate here is not of our making", hint="Restore the folder from a backup.")
    return key


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode("ascii"))
    except (UnicodeError, ValueError) as error:
        raise KeyRefused(
            f"{host[:80]!r} is no host name or address", hint="Such as broker.plant.example."
        ) from error


def _private(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
