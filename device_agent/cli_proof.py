"""`headway proof`: what a head learned from, in one file, and whether it holds. Heavy imports happen inside."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from device_agent.proof import Proved
    from device_agent.proof_claim import Claim
    from device_agent.proof_decision import Again, Pictured
    from device_agent.proof_names import Named

UNCHECKED_EXIT: Final = 3
"""The log holds, and the part's decision is the word of the file alone."""

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def proof() -> None:
    """Prove what a head learned from, and what it decided.

    \b
    On the device, for the part that a customer sends back:
      headway proof make site.toml --part 4711 --out 4711.proof.jsonl
    Anywhere else, with the bundle that served then:
      headway proof check 4711.proof.jsonl bundle/
    And is it about this picture?
      headway proof check 4711.proof.jsonl bundle/ --picture 4711.jpg
    """


@proof.command(short_help="Write the proof of a head, on its device.")
@click.argument("site_file", metavar="SITE.TOML", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.",
)
@click.option("--part", metavar="ID", help="The head that decided this part, and its decision.")
@click.option("--head", type=click.IntRange(1), metavar="N", help="This head. Without both: the newest.")
@_JSON
def make(site_file: Path, out: Path, part: str | None, head: int | None, as_json: bool) -> None:
    """Write what a head of this device learned from: the label log as far as it had come, every entry with its
    hash.

    The agent may be running. The file holds no pictures; their codes, and operators as the log has them.
    """
    import msgspec

    from device_agent.proof import make_proof
    from device_agent.site_file import load_site
    from sdk.logrows import Checked

    checked = Checked()
    claim = make_proof(load_site(site_file).data_dir, out, head=head, part=part, checked=checked)
    if as_json:
        logs = {device: {"seq": c.seq, "hash": c.last_hash.hex()} for device, c in sorted(checked.chains.items())}
        click.echo(json.dumps({**msgspec.to_builtins(claim), "logs": logs}))
        return
    click.echo(
        f"{out}: head {claim.head} of {claim.device}, {claim.samples} samples, live set {claim.digest[:16]}, "
        f"{claim.entries} log entries"
    )
    for device, chain in sorted(checked.chains.items()):
        click.echo(_end(device, chain.seq, chain.last_hash.hex()))
    if claim.part is not None and claim.part.code is None:
        click.echo("the part's code is no longer here: its decision can be made again with its picture only")


@proof.command(short_help="Check a proof against the bundle that served.")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("bundle_path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--log",
    metavar="LOG.JSONL",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The fleet's log, of `headway fleet labels export`: the proof's logs must be its.",
)
@click.option(
    "--picture",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The part's picture, or the camera's frame that it was cut out of: its code must be the proof's.",
)
@_JSON
def check(file: Path, bundle_path: Path, log: Path | None, picture: Path | None, as_json: bool) -> None:
    """Check a proof: every hash of the log, that bundle and log give the live set whose digest the head bears, and
    that the head solved from it decides the part as it was decided.

    It needs neither the device nor its fleet, and trusts nothing in the file that it can compute. Who labelled and
    when, what was overruled, and what people called a class, it cannot: whoever holds the file may write its logs
    anew. Compare where they end with what `make` said, or give the fleet's log with --log. Nor can it know of
    which picture the part's code is. Give that with --picture, from elsewhere than the file: by its SHA-256 it
    must be the one that was decided, and the bundle's backbone makes its code again on this machine.

    Exit code 2 where it does not hold, and 3 where the log does and the part's decision was not checked.
    """
    from device_agent.proof import check_proof
    from sdk.bundle import Bundle

    proved = check_proof(file, Bundle.open(bundle_path), log, picture)
    if as_json:
        click.echo(json.dumps(_facts(proved), indent=1))
    else:
        for line in _lines(proved, log):
            click.echo(_printable(line))
    if not proved.holds:
        raise click.exceptions.Exit(UNCHECKED_EXIT)


def _facts(proved: Proved) -> dict[str, Any]:
    """Return what a proof says as JSON: of what was made again of its part's decision as members of its own."""
    import msgspec

    told: dict[str, Any] = msgspec.to_builtins(proved)
    made = told.pop("made") or dict.fromkeys(("again", "unadapted", "picture", "named", "unchecked"))
    checked = None if proved.made is None else not proved.made.unchecked
    return {"holds": proved.holds, "decision_checked": checked, **told, **made}


def _lines(proved: Proved, log: Path | None) -> list[str]:
    claim, link = proved.claim, proved.link
    given = sum(each.samples for each in proved.labelled)
    lines = [
        f"head     {claim.head} of {claim.device}, since {_time(claim.created_utc)}; {_outcome(claim)}",
        f"log      {claim.entries} entries of {len(proved.devices)} devices; every hash chain holds",
        *_log_lines(proved, log),
        f"bundle   {link.name}, digest {link.bundle_sha256[:16]}, {proved.precision}",
        f"         backbone {link.backbone}, {link.strategy}",
        f"         weights {link.weights.source}; licence {link.weights.licence}",
        f"         data {link.data_sha256[:16]}, {link.images} images",
        f"learned  {claim.samples} samples, live set {claim.digest[:16]}: made again from bundle and log",
        f"         {proved.released} as the bundle has them, {given} by people:",
    ]
    lines += [
        f"           {each.device}, {each.operator or 'nobody named'}: {each.samples}, "
        f"{_time(each.first_utc)} to {_time(each.last_utc)}"
        for each in proved.labelled
    ]
    if (adapted := proved.adapted) is not None:
        shift = f", and {adapted.shift:.1f} of 127 are taken off its codes on average" if adapted.shift else ""
        times = "once" if adapted.own_weight == 1 else f"{adapted.own_weight} times"
        lines.append(f"adapted  an own sample counts {times}{shift}: the device's word")
    if proved.refused:
        lines.append(f"         {proved.refused} entries contradict themselves, and count nowhere")
    counts = ", ".join(f"{name} {count}" for name, count in sorted(proved.classes.items()))
    lines.append(f"classes  {counts}")
    if claim.part is not None:
        lines += _part_lines(proved, log)
    if proved.holds:
        return [*lines, "it holds"]
    assert proved.made is not None
    return [*lines, f"the log holds; the decision was not checked: {proved.made.unchecked}"]


def _log_lines(proved: Proved, log: Path | None) -> list[str]:
    lines = [_end(end.device, end.entries, end.hash, end.known) for end in proved.ends]
    if proved.claim.device not in proved.devices:
        lines.append(f"         {proved.claim.device} itself wrote none of them")
    if log is not None:
        return [*lines, f"         they are those of {log.name}"]
    return [
        *lines,
        "         not compared: who labelled and when, what was overruled, and what classes are called is the "
        "word of this file alone",
    ]


def _end(device: str, entries: int, last_hash: str, known: int | None = None) -> str:
    since = f"; {known - entries} came later" if known is not None and known > entries else ""
    return f"           {device}: {entries}, the last is {last_hash}{since}"


def _part_lines(proved: Proved, log: Path | None) -> list[str]:
    part, made = proved.claim.part, proved.made
    assert part is not None
    assert made is not None
    lines = [
        f"part     {part.part}, {_time(part.captured_utc)}: {part.verdict}",
        f"         recorded: {part.decision} {part.probability:.1%}, novelty {part.novelty:.3f}",
    ]
    if made.again is not None:
        lines.append(f"         made again: {_decision(made.again)}")
    if made.unadapted is not None:
        lines.append(f"         with own samples as all others: {_decision(made.unadapted)}")
    if made.named is not None:
        lines.append(_named(made.named, log))
    if made.picture is not None:
        lines += _picture_lines(made.picture)
    code = "" if made.picture is not None else " code,"
    lines.append(
        f"         its id,{code} time, verdict and reason, and how sure its head is, are the device's word"
    )
    if made.picture is None and made.again is not None:
        lines.append("         of which picture that code is, --picture tells")
    return lines


def _decision(again: Again) -> str:
    by = "" if again.calibrated else " (by the bundle's calibration; this head had none yet)"
    return f"{again.decision} {again.probability:.1%}, novelty {again.novelty:.3f}{by}"


def _named(named: Named, log: Path | None) -> str:
    how = "by a merge," if named.merged else "so called by"
    bundle = f"; the bundle calls it {named.bundle}" if named.bundle else ""
    word = "" if log is not None else "; the word of this file"
    return (
        f"         {named.name}: {how} entry {named.seq} of {named.device}, {named.operator or 'nobody named'}, "
        f"{_time(named.at_utc)}{bundle}{word}"
    )


def _picture_lines(picture: Pictured) -> list[str]:
    """Return what the part's picture says; what the difference of two codes means, too."""
    it = "the tile that was decided lies in it" if picture.cut else "it is the one that was decided"
    lines = [f"picture  {it}, by its SHA-256 {picture.sample}"]
    if picture.code_off is None or picture.score_off is None:
        code = "its code was made here; there is none in the file to compare it with"
    elif picture.code_off == 0:
        code = "its code, made here again, is the one in the file, number by number"
    else:
        code = (
            f"its code, made here again, is off by {picture.code_off:.2f} of 127 on average, and by "
            f"{picture.score_off:.3f} in a score: as machines round differently"
        )
    lines.append(f"         {code} ({picture.runtime})")
    return [*lines, f"         by it: {_decision(picture.again)}"]


def _outcome(claim: Claim) -> str:
    return f"{claim.outcome}: {claim.reason}" if claim.reason else claim.outcome


def _time(utc: float) -> str:
    try:
        return f"{datetime.fromtimestamp(utc, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return "at no time that there is"


def _printable(line: str) -> str:
    """Return a line in which a proof's texts can move no cursor and begin no line of their own."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)
