"""The one installed command, `headway`. Finds its subcommands by entry point, so that sdk imports neither side.

Rules kept here:

- `headway --help` imports no subcommand: it answers at once, whatever is installed.
- An error that Headway raises on purpose is two lines on stderr, `error:` and `hint:`, and exit code 2; so is
  wrong usage. Ctrl-C is a line and exit code 130, SIGTERM 143, without a traceback and with temporary files
  removed. Anything else is a bug and shows its traceback.
- A third-party module that is missing names the extra to install.
- A shell that asks how a line goes on (`_HEADWAY_COMPLETE`) is answered, and nothing is run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Final, NamedTuple, NoReturn

import click
from click.shell_completion import CompletionItem, shell_complete

from sdk.errors import HeadwayError, MissingExtra
from sdk.extras import installing
from sdk.shown import say
from sdk.stopping import Terminated, terminable
from sdk.version import headway_version

GROUP: Final = "headway.commands"
COMPLETE: Final = "_HEADWAY_COMPLETE"
"""What a shell sets to ask for the script that completes, such as "bash_source", and for completions."""
USAGE_EXIT: Final = 2
INTERRUPT_EXIT: Final = 130
TERMINATED_EXIT: Final = 143
"""128 and the signal's number, as shells tell it."""
_COMMAND: Final = "headway.command"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_OURS: Final = frozenset({"sdk", "device_agent", "export"})


class _Known(NamedTuple):
    extra: str
    help: str


_COMMANDS: Final = {
    "export": _Known("export", "Turn labelled images into a bundle: backbone, quantization, head."),
    "audit": _Known("export", "Find labels of a set that are probably wrong."),
    "evaluate": _Known("agent", "Measure a bundle on images it did not learn from."),
    "rehearse": _Known("agent", "Replay images with an oracle: how many labels will be needed?"),
    "bundle": _Known("", "Show, verify or carry a bundle, or say where it comes from."),
    "agent": _Known("agent", "Inspect, label and learn on this device."),
    "proof": _Known("agent", "Prove what a head learned from, and what it decided."),
    "fleet": _Known("fleet", "Serve and publish to a fleet of devices."),
    "doctor": _Known("agent", "Say what this machine can run, and what to fix."),
    "demo": _Known("demo", "Show the whole on this machine."),
}
"""Help lines and extras of our own commands, so that neither needs an import. Others' show their name only."""


class LazyCommands(click.Group):
    """A group whose commands are entry points, loaded when they are run."""

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {found.name: found for found in entry_points(group=GROUP)}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return our own commands in the order of use, then others'."""
        found = self._entry_points()
        ours = [name for name in _COMMANDS if name in found]
        return ours + sorted(set(found) - set(ours))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command.

        Raises:
            MissingExtra: a module of another distribution is not installed.
        """
        found = self._entry_points().get(cmd_name)
        if found is None:
            return None
        try:
            command = found.load()
        except ImportError as error:
            told = missing_extra(cmd_name, error)
            if told is None:
                raise
            raise told from error
        if not isinstance(command, click.Command):
            raise TypeError(f"entry point {found.value} is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help lines without importing anything."""
        rows = [(name, _COMMANDS[name].help if name in _COMMANDS else "") for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return what a word may become, without importing anything."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        helps = {name: known.help for name, known in _COMMANDS.items()}
        items = [CompletionItem(name, help=helps.get(name)) for name in names]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Note which command runs, so that a module it misses later names the right extra."""
        ctx.meta[_COMMAND] = args[0] if args else ""
        return super().resolve_command(ctx, args)


def missing_extra(command: str, error: ImportError) -> MissingExtra | None:
    """Return what to tell the user of a failed import; None where it is a bug of our own."""
    module = (error.name or "").partition(".")[0]
    if not module or module in _OURS or not isinstance(error, ModuleNotFoundError):
        return None
    extra = _COMMANDS[command].extra if command in _COMMANDS else ""
    if not extra:
        return None
    extras = f"the extras {extra.replace(',', ', ')}" if "," in extra else f"the {extra} extra"
    return MissingExtra(
        f"headway {command} needs {extras}: module {module} is not installed",
        hint=installing(extra),
    )


@click.command(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(headway_version(), prog_name="headway")
def headway() -> None:
    """Keep factory vision models current where the defects are."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run `headway` and exit: 0 done, 2 an error somebody can do something about, 130 or 143 stopped."""
    context: click.Context | None = None
    asked = os.environ.get(COMPLETE)
    if asked and args is None:
        with contextlib.suppress(HeadwayError):  # such as an extra that is missing: nobody is there to be told
            sys.exit(shell_complete(headway, {}, "headway", COMPLETE, asked))
        sys.exit(1)
    try:
        with terminable(), headway.make_context("headway", list(sys.argv[1:] if args is None else args)) as ctx:
            context = ctx
            headway.invoke(ctx)
            sys.stdout.flush()
        code = 0
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except (click.Abort, KeyboardInterrupt) as stop:
        click.echo(f"stopped{': ' * bool(str(stop))}{stop}", err=True)
        code = TERMINATED_EXIT if isinstance(stop, Terminated) else INTERRUPT_EXIT
    except click.ClickException as error:
        error.show()
        code = error.exit_code if error.exit_code != 1 else USAGE_EXIT
    except HeadwayError as error:
        code = _say(error)
    except ModuleNotFoundError as error:
        told = missing_extra("" if context is None else str(context.meta.get(_COMMAND, "")), error)
        if told is None:
            raise
        code = _say(told)
    except BrokenPipeError:
        # The reader went away (`headway ... | head`).
        _give_up_stdout()
        code = 1
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        # What writes files names them, so this was standard output (`headway ... --json - > file`).
        _give_up_stdout()
        code = _say(HeadwayError(f"standard output: {error.strerror}", hint="Free some space, and repeat it."))
    sys.exit(code)


def _give_up_stdout() -> None:
    """Keep Python from complaining again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(error: HeadwayError) -> int:
    say(f"error: {error}", err=True)
    say(f"hint: {error.hint}", err=True)
    return USAGE_EXIT


if __name__ == "__main__":
    main()
