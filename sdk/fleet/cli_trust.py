"""`headway fleet keys ...` and `headway fleet sign`: who may publish. What stays where is printed plainly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from sdk.errors import FleetError, KeyRefused
from sdk.shown import say

if TYPE_CHECKING:
    from sdk.bundle import Bundle
    from sdk.fleet.channel_ledger import Publication
    from sdk.fleet.rollout import Plan
    from sdk.fleet.store import FleetStore, Prepared
    from sdk.trust.metadata import SignedRelease
    from sdk.trust.repository import Repository, Staged

STAGED_NAME: Final = "to-sign.json"
MAX_PASSPHRASE_BYTES: Final = 1024
MIN_PASSPHRASE_CHARS: Final = 12
"""Of new keys: whoever has the file may guess as often as he likes, which nobody can at the page's door."""

dir_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The fleet's directory.",
)
keys_option = click.option(
    "--keys",
    "keys_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the offline keys, best on a medium of its own.",
)
passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File whose first line opens the offline keys; asked for where they are locked and none is named.",
)


@click.group()
def keys() -> None:
    """Make, show and change the keys that sign releases.

    Two kinds. Offline keys say what may be published: `root` names all other keys, 2 of 3 must sign, and `targets`
    signs releases. The online key lies on the server and only says that nothing newer was published, and which
    labels come from the fleet. Who steals the server, or the broker, cannot publish a release.
    """


@keys.command("init")
@dir_option
@click.option(
    "--keys",
    "keys_dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where the offline keys go: a folder outside --dir, best on a medium of its own.",
)
@click.option("--root-keys", type=int, default=3, show_default=True, help="How many root keys.")
@click.option("--threshold", type=int, default=2, show_default=True, help="How many must sign a new root.")
@passphrase_option
@click.option("--no-passphrase", is_flag=True, help="Leave the offline keys unlocked: whoever has them signs.")
def keys_init(
    directory: Path,
    keys_dir: Path,
    root_keys: int,
    threshold: int,
    passphrase_file: Path | None,
    no_passphrase: bool,
) -> None:
    """Make a fleet's keys and its first signed metadata."""
    from sdk.trust.repository import TRUST_FOLDER, Repository

    if keys_dir.resolve().is_relative_to(directory.resolve()):
        raise KeyRefused(
            f"{keys_dir} is inside {directory}",
            hint="Offline keys do not belong on the server: name another folder.",
        )
    passphrase = None if no_passphrase else _passphrase(passphrase_file, new=True)
    repository = Repository.create(
        directory / TRUST_FOLDER, keys_dir, root_keys=root_keys, threshold=threshold, passphrase=passphrase
    )
    click.echo(f"""\
{keys_dir}/root-1.pem to root-{root_keys}.pem
    offline: {threshold} of them name all other keys. Give each to another person or safe; they are needed only to
    change keys, and every few years.
{keys_dir}/targets.pem
    offline: signs every release. Bring it when you publish; keep it off the server.
{repository.folder}/online.pem
    stays on this server, readable by its owner only: keeps metadata fresh, signs labels.
{repository.root_file()}
    public: copy it by hand to every device, as [trust] root in its site.toml; `headway fleet enroll` does.
Publish with: headway fleet publish BUNDLE --dir {directory} --keys {keys_dir}""")
    if no_passphrase:
        click.echo("The offline keys are not locked. For anything but a trial make them with a passphrase.")


@keys.command("show")
@dir_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def keys_show(directory: Path, as_json: bool) -> None:
    """Show what is signed: versions, expiries, key ids, releases."""
    repository = open_trust(directory)
    rows = _overview(repository)
    if as_json:
        click.echo(msgspec.json.encode(rows))
        return
    for role in rows["roles"]:
        names = ", ".join(keyid[:12] for keyid in role["keyids"])
        needed = f"{role['threshold']} of {len(role['keyids'])}"
        click.echo(
            f"{role['role']:<10} version {role['version']:<4} until {role['expires'][:10]}  {needed}: {names}"
        )
    for release in rows["releases"]:
        say(f"signed     {release['channel']} version {release['version']}: {release['name']}")


def _overview(repository: Repository) -> dict[str, Any]:
    root = repository.root().signed
    signed = {
        "root": root,
        "targets": repository.targets().signed,
        "snapshot": repository.snapshot().signed,
        "timestamp": repository.timestamp().signed,
    }
    return {
        "roles": [
            {
                "role": role,
                "version": one.version,
                "expires": one.expires.isoformat(),
                "threshold": root.roles[role].threshold,
                "keyids": list(root.roles[role].keyids),
            }
            for role, one in signed.items()
        ],
        "releases": [
            {"path": path, **msgspec.to_builtins(release)}
            for path, release in sorted(repository.releases().items(), key=lambda item: -item[1].version)
        ],
    }


@keys.command("rotate")
@click.argument("role", type=click.Choice(["online", "targets", "root"]))
@dir_option
@click.option("--keys", "keys_dir", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--replace", help="With root: file name, or first digits of the id, of the key to replace.")
@passphrase_option
def keys_rotate(
    role: str, directory: Path, keys_dir: Path, replace: str | None, passphrase_file: Path | None
) -> None:
    """Replace a key, after its theft or by the calendar. Devices follow by themselves.

    `online` needs enough root keys and the targets key. `targets` needs enough root keys. `root` replaces the one
    key that --replace names; the others, at least the threshold, sign.
    """
    from sdk.trust.repository import rotate_root, rotate_targets

    repository = open_trust(directory)
    passphrase = passphrase_for(keys_dir, passphrase_file)
    if role == "online":
        _, aside = repository.rotate_online(
            root_signers(repository, keys_dir, passphrase), targets_signers(repository, keys_dir, passphrase)[0]
        )
        click.echo(f"online key replaced; the old one is void and lies in {aside}: delete it")
    elif role == "targets":
        made = rotate_targets(repository, root_signers(repository, keys_dir, passphrase), keys_dir, passphrase)
        click.echo(f"targets key replaced by {made}; the old one is void: delete it")
    else:
        if replace is None:
            raise click.UsageError("rotate root needs --replace, such as --replace root-2.pem")
        made = rotate_root(repository, keys_dir, replace, passphrase)
        click.echo(f"root key {replace} replaced by {made}; the old one is void: delete it")
    click.echo(f"root is version {repository.root().signed.version} now; a running service announces it by itself")


@keys.command("renew", short_help="Sign root and targets anew, for longer.")
@dir_option
@click.option("--keys", "keys_dir", type=click.Path(path_type=Path, file_okay=False), required=True)
@passphrase_option
def keys_renew(directory: Path, keys_dir: Path, passphrase_file: Path | None) -> None:
    """Sign root and targets anew, with a new expiry, as far as their keys are in the folder."""
    from sdk.trust.repository import sign

    repository = open_trust(directory)
    passphrase = passphrase_for(keys_dir, passphrase_file)
    found: dict[str, Sequence[Any]] = {}
    for role, signers in (("root", root_signers), ("targets", targets_signers)):
        if any(keys_dir.glob(f"{role}*.pem")):
            found[role] = signers(repository, keys_dir, passphrase)
    needed = {role: repository.root().signed.roles[role].threshold for role in ("root", "targets")}
    able = [role for role in needed if len(found.get(role, ())) >= needed[role]]
    if not able:
        raise KeyRefused(
            f"{keys_dir} has too few keys to renew anything",
            hint=f"{needed['root']} root keys renew the root, the targets key the targets.",
        )
    root, targets = repository.stage_root(), repository.stage_renewal()
    for role, staged in (("root", root), ("targets", targets)):
        if role in able:
            sign(staged, found[role])
    if len(able) == len(needed):
        repository.put_root_and_targets(root, targets)  # at once: targets may make room for the root
    else:
        repository.put_into_force(root if "root" in able else targets)
    for role, least in needed.items():
        now = repository.root() if role == "root" else repository.targets()
        short = "" if role in able else f": not renewed, {len(found.get(role, ()))} of {least} keys are here"
        click.echo(f"{role} until {now.signed.expires:%Y-%m-%d}{short}")


@click.command(short_help="Sign what `publish --unsigned` wrote.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@keys_option
@passphrase_option
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="The fleet's directory: put it into force there, and publish what it signs.",
)
def sign(file: Path, keys_dir: Path | None, passphrase_file: Path | None, directory: Path | None) -> None:
    """Sign FILE, which `publish --unsigned` wrote, with the targets key; or put it into force, or both.

    \b
      on the server    headway fleet publish BUNDLE --dir fleet --unsigned
      where the key is headway fleet sign to-sign.json --keys KEYS
      on the server    headway fleet sign to-sign.json --dir fleet
    """
    from sdk.trust.keys import load_key
    from sdk.trust.repository import describe_change, read_staged, write_staged
    from sdk.trust.repository import sign as add_signatures

    if keys_dir is None and directory is None:
        raise click.UsageError("give --keys to sign, --dir to put into force, or both")
    staged = read_staged(file)
    before = {} if directory is None else open_trust(directory).targets().signed.targets
    after = getattr(staged.signed, "targets", {})
    for line in describe_change(before, after):
        say(line)
    if keys_dir is not None:
        signer = load_key(keys_dir / "targets.pem", passphrase_for(keys_dir, passphrase_file))
        add_signatures(staged, [signer])
        write_staged(file, staged)
        click.echo(f"signed with {signer.public_key.keyid[:12]}")
    if directory is None:
        click.echo(f"carry it back to the server, then there: headway fleet sign {file.name} --dir FLEET")
        return
    from sdk.fleet.store import FleetStore

    with FleetStore(directory) as store:
        for one in put_into_force(store, open_trust(directory), staged):
            say(f"published {one.ref.name} on channel {one.channel}")


# -- what `publish` and `serve` use -------------------------------------------------------------------------------


def open_trust(directory: Path) -> Repository:
    """Return a fleet's keys and metadata.

    Raises:
        KeyRefused: it has none.
    """
    from sdk.trust.repository import TRUST_FOLDER, Repository

    return Repository(directory / TRUST_FOLDER)


def has_trust(directory: Path) -> bool:
    """Return whether a fleet has keys."""
    from sdk.trust.repository import TRUST_FOLDER, exists

    return exists(directory / TRUST_FOLDER)


def stage(repository: Repository, prepared: Prepared, channel: str, fallback: Publication | None = None) -> Staged:
    """Return metadata that names a prepared release as its channel's next, to be signed.

    Args:
        repository: The fleet's.
        prepared: The release.
        channel: Its channel.
        fallback: What devices may go back to while it is rolled out.
    """
    from sdk.trust.metadata import SignedRelease

    ref = prepared.release.ref
    new = SignedRelease(
        channel=channel,
        version=repository.next_version(channel),
        name=ref.name,
        space=prepared.space,
        feature_size=prepared.feature_size,
    )
    back = None if fallback is None else fallback.ref.release_id
    return repository.stage_release(ref.release_id, len(prepared.release.encoded), new, fallback=back)


def check_keys(directory: Path, keys_dir: Path | None) -> None:
    """Refuse keys for a fleet that has none: whoever names them means to publish a signed release.

    Raises:
        KeyRefused: keys are named, and the fleet's releases are unsigned.
    """
    if keys_dir is not None and not has_trust(directory):
        raise KeyRefused(
            f"{directory} has no keys, so that nothing would be signed",
            hint=f"Check --dir; or make keys: headway fleet keys init --dir {directory} --keys FOLDER. "
            "Without --keys it is published unsigned.",
        )


def publish_bundle(
    store: FleetStore,
    bundle: Bundle,
    *,
    channel: str,
    keys_dir: Path | None,
    passphrase_file: Path | None,
    plan: Plan | None,
) -> Publication:
    """Store a bundle, sign it as the channel's next release where the fleet has keys, and publish it.

    Raises:
        KeyRefused: the fleet has keys, and none is named that may sign; or it has none, and some are named.
        FleetError: a rollout is under way in this channel.
    """
    from sdk.trust.repository import sign as add_signatures

    check_keys(store.directory, keys_dir)
    if not has_trust(store.directory):
        return store.publish(bundle, channel=channel, plan=plan)
    if keys_dir is None:
        raise KeyRefused(
            "this fleet's releases are signed, and no keys are named",
            hint="--keys FOLDER with targets.pem, or --unsigned to sign it elsewhere.",
        )

    repository = open_trust(store.directory)
    with store.read() as ledger:
        ledger.check_idle(channel)  # before anybody is asked for a passphrase
    signers = targets_signers(repository, keys_dir, passphrase_for(keys_dir, passphrase_file))
    prepared = store.prepare(bundle)
    with store.read() as ledger:
        fallback = None if plan is None else ledger.current(channel)
    staged = stage(repository, prepared, channel, fallback)
    add_signatures(staged, signers)
    published = put_into_force(store, repository, staged, plan)
    return next(one for one in published if one.channel == channel)


def publish_unsigned(store: FleetStore, bundle: Bundle, *, channel: str, plan: Plan | None) -> Path:
    """Store a bundle's chunks and write what is to be signed for it; nothing is published yet.

    Raises:
        FleetError: it is to go out in waves: the plan would be forgotten until it is signed.
        KeyRefused: the fleet has no keys.
    """
    from sdk.trust.repository import write_staged

    if plan is not None:
        raise FleetError(
            "a release in waves is signed with the key at hand",
            hint="Publish with --keys where the key is, or --unsigned without --waves, to all devices at once.",
        )

    repository = open_trust(store.directory)
    file = store.directory / STAGED_NAME
    write_staged(file, stage(repository, store.prepare(bundle), channel))
    return file


def put_into_force(
    store: FleetStore, repository: Repository, staged: Staged, plan: Plan | None = None
) -> list[Publication]:
    """Make signed metadata current and publish each release that is new in it, or begin its rollout.

    Both or neither, but for a power cut between signing and the commit: then the release is signed and not
    published, and the same command again publishes it.

    Raises:
        KeyRefused: it is not signed as it must be, or not the next version.
        FleetError: the chunks of a release are not here, or a rollout is under way in its channel.
    """
    from tuf.api.metadata import Targets

    from sdk.release import Release
    from sdk.trust.metadata import releases

    before = repository.releases()
    after = releases(staged.signed) if isinstance(staged.signed, Targets) else before
    in_force = repository.is_in_force(staged)
    fresh = _never_published(store, after) if in_force else {p: s for p, s in after.items() if before.get(p) != s}
    found = []
    for path, signed in fresh.items():
        if signed.fallback:
            continue
        descriptor = store.chunks.get(path.rpartition("/")[2])
        if descriptor is None:
            raise FleetError(
                f"release {signed.name!r} is not in {store.directory}", hint="Publish its bundle here first."
            )
        found.append((Release.parse(descriptor), signed))
    sizes = [store.feature_sizes(release) for release, _ in found]
    with store.write() as ledger:
        for each in sizes:
            ledger.note_spaces(each)
        published = [
            ledger.publish(
                release, channel=signed.channel, space=signed.space, feature_size=signed.feature_size, plan=plan
            )
            for release, signed in sorted(found, key=lambda one: one[1].version)
        ]
        # Last before the commit: what the ledger refuses is not signed either.
        if not (in_force and published):
            repository.put_into_force(staged)
    for one in published:
        store.give_back(one)
    return published


def _never_published(store: FleetStore, signed: Mapping[str, SignedRelease]) -> dict[str, SignedRelease]:
    """Return of each channel the newest signed release where it is not the newest published one.

    Of metadata in force: it was signed, and the power went before it was published.
    """
    newest: dict[str, tuple[str, SignedRelease]] = {}
    for path, one in signed.items():
        if not one.fallback and (one.channel not in newest or newest[one.channel][1].version < one.version):
            newest[one.channel] = path, one
    with store.read() as ledger:
        return {
            path: one
            for channel, (path, one) in newest.items()
            if ledger.newest_release(channel) != path.rpartition("/")[2]
        }


def root_signers(repository: Repository, keys_dir: Path, passphrase: bytes | None) -> Sequence[Any]:
    """Return the root keys in a folder."""
    from sdk.trust.repository import role_signers

    return role_signers(repository.root().signed, "root", keys_dir, passphrase)


def targets_signers(repository: Repository, keys_dir: Path, passphrase: bytes | None) -> Sequence[Any]:
    """Return the targets keys in a folder."""
    from sdk.trust.repository import role_signers

    return role_signers(repository.root().signed, "targets", keys_dir, passphrase)


def passphrase_for(keys_dir: Path, file: Path | None) -> bytes | None:
    """Return the passphrase of a folder's keys; None where none of them is locked."""
    from sdk.trust.keys import is_locked

    locked = any(is_locked(key.read_bytes()) for key in keys_dir.glob("*.pem"))
    return _passphrase(file, new=False) if locked else None


def _passphrase(file: Path | None, *, new: bool) -> bytes:
    if file is None:
        asked = "Passphrase of the offline keys" + (f" ({MIN_PASSPHRASE_CHARS} characters or more)" if new else "")
        typed: str = click.prompt(asked, hide_input=True, confirmation_prompt=new)
        return _long_enough(typed.encode(), new=new)
    try:
        found = file.read_bytes()[:MAX_PASSPHRASE_BYTES].split(b"\n")[0].strip(b"\r")
    except OSError as error:
        raise KeyRefused(f"{file}: {error.strerror}", hint="Write the passphrase into it.") from error
    if not found:
        raise KeyRefused(f"{file} is empty", hint="Write the passphrase into its first line.")
    return _long_enough(found, new=new)


def _long_enough(passphrase: bytes, *, new: bool) -> bytes:
    if new and len(passphrase.decode(errors="replace")) < MIN_PASSPHRASE_CHARS:
        raise KeyRefused(
            "that passphrase is too short",
            hint=f"At least {MIN_PASSPHRASE_CHARS} characters: three words or four. For a trial: --no-passphrase.",
        )
    return passphrase
