"""`cmlab`, the command line, of the groups in `line`. Each command imports what it needs by itself, so that help and
completion come at once.

Exit codes: 0; 1 for work that failed, 2 for a wrong parameter or argument, 128 + n for signal n. An error is one line.
"""

import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cmcore.closure import ROOT
from cmcore.commands.line import models, pipeline, results, upkeep
from cmcore.commands.line.call import NAME, Call
from cmcore.commands.overrides import recover, running
from cmcore.commands.place import CommandError, project_root
from cmcore.config import ConfigError
from cmcore.edge.ray_family import leave
from cmcore.pipeline.home import give_home
from cmcore.pipeline.signals import SIGNALLED, received, status, stop_on_signals

OUTSIDE = (
    "import-weights",
    "sample",
    "edit",
    "gallery",
    "toy",
    "export",
)  # commands that work without a project folder, too
UNTOUCHED = ("doctor", *OUTSIDE)  # commands that change no file
WRITES_PARAMETERS = ("use", "adopt")
CONTINUED = ("repro", "tune")

app = typer.Typer(
    name=NAME,
    rich_markup_mode=None,  # its import takes longer than all of the help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (pipeline, models, results, upkeep):
    app.add_typer(group.app)


def show_version(wanted: bool) -> None:
    """`--version`."""
    if not wanted:
        return
    try:
        print(f"{NAME} {importlib.metadata.version(NAME)}")
    except importlib.metadata.PackageNotFoundError:
        print(f"{NAME} from {ROOT}, not installed")
    raise typer.Exit


@app.callback()
def prepare(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Consistency models: trained, compared and reproduced.

    Works in the project folder, with dvc.yaml and params.yaml, that the working directory lies in.

    \b
    Examples:
      cmlab repro            the whole pipeline, from data to report
      cmlab use cifar10      another workload
      cmlab doctor           is everything in order?
    """
    del version
    call, command = context.ensure_object(Call), context.invoked_subcommand or ""
    call.command = command
    if {"-h", "--help"} & set(call.words):
        return
    try:
        root = project_root(call.start)
    except CommandError:
        if command in OUTSIDE:
            return
        raise
    if command not in UNTOUCHED:
        for line in recover(root):
            print(line, file=sys.stderr)
    if command in WRITES_PARAMETERS and running(root):
        raise CommandError("params.yaml belongs to a running `cmlab repro --set`; wait for it to end")
    os.chdir(root)


def known(error: Exception) -> bool:
    """Whether an error says in a sentence what is wrong. Asked once there is one, as it imports much."""
    from cmcore.pipeline.process import expected

    dvc = sys.modules.get("dvc.exceptions")
    return isinstance(error, (CommandError, *expected(), *((dvc.DvcException,) if dvc else ())))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit.

    Args:
        arguments: of a command in a process that goes on, as a notebook's does: its signals, its working directory and
            its end are not the command's, and an interrupt is raised. None: those of this process, which the command
            ends.

    Raises:
        SystemExit: with the exit code.
    """
    own = arguments is None
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    call = Call(words=list(sys.argv[1:] if arguments is None else arguments) or ["--help"])

    def stopped() -> str:
        more = "; the same command continues from here" if call.command in CONTINUED else ""
        return f"{' '.join([NAME, call.command]).strip()}: stopped{more}"

    if own:
        give_home()
        stop_on_signals(stopped)
    message, code = "", 0
    try:
        code = app(call.words, prog_name=NAME, standalone_mode=False, obj=call) or 0
    except typer.TyperException as error:
        message, code = error.format_message(), error.exit_code
    except ConfigError as error:
        message, code = str(error), 2
    except KeyboardInterrupt:
        code = SIGNALLED + signal.SIGINT
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) and not received else 1
    except Exception as error:
        if received or known(error):
            message, code = str(error), 1
        else:
            from cmcore.pipeline.process import told

            message, code = told(error, Path.cwd()), 1
    if not own:
        os.chdir(call.start)
    if (code := status(code)) > SIGNALLED:
        if not own:
            raise KeyboardInterrupt
        leave(code, stopped())
    if message:
        print(f"{' '.join([NAME, call.command]).strip()}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
