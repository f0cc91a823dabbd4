"""Commands that look after files and the machine."""

from pathlib import Path
from typing import Annotated

import typer

from cmcore.commands.line.call import NAME, Call, show

app = typer.Typer()


@app.command()
def import_weights(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            help="A network of EDM, EDM2, Consistency Models or ECT: .pkl or .pt; of this project: .safetensors; or a "
            "folder of diffusers with the network of a consistency model or of a latent diffusion model."
        ),
    ],
    part: Annotated[str, typer.Option(help="Which weights of a file that holds several.")] = "",
) -> None:
    """Describe a public weight file.

    Reads the file, writes nothing: prints its family, its size, and the lines of params.yaml that use it.

    \b
    Example:
      cmlab import-weights edm-cifar10-32x32-uncond-vp.pkl
    """
    from cmcore.commands.import_weights import describe

    path, here = context.ensure_object(Call).start / file, Path.cwd()
    # In the words that params.yaml would use.
    print(describe(path.relative_to(here) if path.is_relative_to(here) else path, part))


@app.command()
def clean() -> None:
    """Remove what interrupted runs left and none needs.

    Removes checkpoints in .work/ of runs and searches that neither params.yaml nor a file of workloads/ describes.
    Results and DVC's cache stay.

    \b
    Example:
      cmlab clean
    """
    from cmcore.commands.clean import clean as remove
    from cmcore.pipeline.turn import turn

    with turn(Path.cwd(), f"{NAME} clean", wait=False):
        show(remove(Path.cwd()))


@app.command()
def doctor() -> None:
    """Check machine, packages, DVC, Ray, MLflow and parameters.

    Changes nothing. A line for each: ok, warn or FAIL, and how to mend it. Ends with 1 where one is FAIL.

    \b
    Example:
      cmlab doctor
    """
    from cmcore.commands.doctor import examine

    lines, healthy = examine(Path.cwd())
    show(lines)
    raise typer.Exit(0 if healthy else 1)


@app.command(hidden=True)
def readme() -> None:
    """Copy the table of the workload digits into README.md."""
    from cmcore.commands.readme import copy_table

    show(copy_table(Path.cwd()))


@app.command("ship-extractor", hidden=True)
def ship_extractor() -> None:
    """Train the active workload's classifier anew and keep it among the project's files (`eval.extractor: shipped`)."""
    from cmcore.commands.ship_extractor import ship

    show(ship(Path.cwd()))
