"""Commands that measure, tabulate and show results."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from cmcore.commands import complete
from cmcore.commands.line.call import NAME, Call, show
from cmcore.commands.overrides import overriding
from cmcore.commands.place import CommandError, require_own_code, workload_file

ClassCounts = Literal["none", "reference", "uniform"]
app = typer.Typer()


@app.command()
def report() -> None:
    """Make tables, figures and page again.

    Reads the results that are there and writes reports/<workload>. Nothing is trained, measured or searched.

    \b
    Example:
      cmlab report
    """
    from cmcore.commands import report as pages
    from cmcore.pipeline.turn import turn

    with turn(Path.cwd(), f"{NAME} report", wait=False):
        raise typer.Exit(pages.main())


@app.command()
def score(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Of the row, in the tables.")],
    samples: Annotated[
        Path | None, typer.Option(help="Folder, zip or tar of pictures; .npz (arr_0 or images) or .npy, uint8.")
    ] = None,
    workload: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="A file of workloads/ in place of params.yaml.", autocompletion=complete.workloads
        ),
    ] = "",
    nfe: Annotated[int, typer.Option(min=0, help="Function evaluations of an image; 0: not stated.")] = 0,
    classes: Annotated[
        ClassCounts, typer.Option(help="Of conditional samples: as frequent as in the data, or all alike.")
    ] = "none",
    remove: Annotated[bool, typer.Option("--remove", help="Take the row of this name away again.")] = False,
) -> None:
    """Measure samples of any generator and put them into the tables.

    Reads images of the workload's resolution and its reference. Writes reports/<workload>/scored, which belongs into
    git, and makes the report anew. The same name replaces a row. It is marked as foreign samples and not ranked.

    \b
    Examples:
      cmlab score --samples pictures --name "my model" --nfe 1
      cmlab score --samples samples.npz --workload mine --name "my model"
      cmlab score --remove --name "my model"
    """
    from cmcore.commands import report as pages
    from cmcore.commands import score as command
    from cmcore.pipeline.turn import turn

    root, start = Path.cwd(), context.ensure_object(Call).start
    require_own_code(root)
    if (samples is None) != remove:
        raise CommandError("--samples: expected a place" if samples is None else "--remove: expected no --samples")
    with turn(root, f"{NAME} score", wait=False):
        there = workload_file(root, workload) if workload else None
        with overriding(root, [], [], there) if there else nullcontext():
            if samples is None:
                show(command.remove(root, name))
            else:
                show(command.add(root, start / samples, name, nfe=nfe, classes="" if classes == "none" else classes))
            code = pages.main()
    raise typer.Exit(code)


@app.command()
def likelihood(
    run: Annotated[str, typer.Argument(help="A run whose method has a denoiser in it.", autocompletion=complete.runs)],
    images: Annotated[int, typer.Option(help="How many training images.")] = 500,
    steps: Annotated[int, typer.Option(help="Steps of the solver, each of four evaluations.")] = 30,
    seed: Annotated[int, typer.Option(help="Which images, and their noise.")] = 1,
) -> None:
    """Measure the bits per dimension of a trained run.

    Reads the run's weights and the data in outputs/, writes nothing. By the probability-flow ODE and Hutchinson's
    estimator, so only diffusion models and CTM have it.

    \b
    Example:
      cmlab likelihood edm
    """
    from cmcore.commands.likelihood import line
    from cmcore.pipeline.common import load

    print(line(load(), run, images=images, steps=steps, seed=seed))


@app.command()
def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens on 127.0.0.1.")] = 5000) -> None:
    """Open MLflow's pages for this machine.

    Serves .tracking/mlflow.db until Ctrl-C.

    \b
    Example:
      cmlab ui --port 5001
    """
    from cmcore.commands.ui import serve

    serve(Path.cwd(), port)


@app.command()
def sync() -> None:
    """Send MLflow what it missed.

    Reads outputs/ and reports/ of the active workload; sends what the MLflow server or database lacks, nothing twice.
    After a server was down, or where the reports came with git.

    \b
    Example:
      cmlab sync
    """
    from cmcore.commands.sync import sync as send
    from cmcore.pipeline.common import load

    show(send(load()))
