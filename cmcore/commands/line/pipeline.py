"""Commands that run the pipeline and choose its parameters."""

from pathlib import Path
from typing import Annotated

import typer

from cmcore.commands import complete
from cmcore.commands.line.call import NAME, Call, show
from cmcore.commands.overrides import overriding
from cmcore.commands.place import require_own_code, workload_file

app = typer.Typer()


@app.command()
def repro(
    jobs: Annotated[
        str,
        typer.Option("-j", "--jobs", metavar="N", help="Stages at a time: a number, or auto for what the cores carry."),
    ] = "auto",
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A parameter for this run of the pipeline alone; may be given several times.",
            autocompletion=complete.parameters,
        ),
    ] = None,
    replicates: Annotated[
        int | None, typer.Option(metavar="N", help="Training seeds of every run; the same as --set replicates=N.")
    ] = None,
    runs: Annotated[
        str, typer.Option(metavar="NAMES", help="These runs alone, and those that they start from: edm,ect.")
    ] = "",
    workload: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="A file of workloads/ in place of params.yaml, for this run of the pipeline alone.",
            autocompletion=complete.workloads,
        ),
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for another command that works in this project.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Begin in any case, also where memory or time do not seem to suffice.")
    ] = False,
) -> None:
    """Run the pipeline: prepare data, train, evaluate, tabulate.

    Reads params.yaml and runs what changed since the last time; what was computed before comes back from DVC's cache.
    Writes outputs/, reports/ and dvc.lock. Stopped by Ctrl-C or killed, it continues where it was.

    \b
    Examples:
      cmlab repro
      cmlab repro -j 4
      cmlab repro --set runs.ect.options.q=8 --set train.seed=2
      cmlab repro --runs ect,sct --replicates 5
      cmlab repro --workload digits-ablations

    With --set, --replicates, --runs or --workload, params.yaml changes while the pipeline runs and is put back then.
    """
    from cmcore.commands import repro as pipeline
    from cmcore.pipeline.turn import turn

    require_own_code(Path.cwd())
    assignments = [*(assignments or ()), *([f"replicates={replicates}"] if replicates is not None else ())]
    names = [name.strip() for name in runs.split(",") if name.strip()]
    with turn(Path.cwd(), f"{NAME} repro", wait=wait):
        if not (assignments or names or workload):
            raise typer.Exit(pipeline.main(jobs, yes=yes))
        with overriding(Path.cwd(), assignments, names, workload_file(Path.cwd(), workload) if workload else None):
            code = pipeline.main(jobs, yes=yes)
    if not code and not workload:
        shown = ", ".join([*assignments, *([f"the runs {runs}"] if names else [])])
        print(f"reports/ now show {shown}; `cmlab repro` restores the results of params.yaml as it is")
    raise typer.Exit(code)


@app.command()
def use(
    workload: Annotated[
        str, typer.Argument(help="A file of workloads/, by its name.", autocompletion=complete.workloads)
    ],
) -> None:
    """Make a workload the active one.

    Copies workloads/WORKLOAD.yaml to params.yaml, which is refused where that holds edits that would be lost.

    \b
    Example:
      cmlab use cifar10
    """
    from cmcore.commands.use import use as copy

    show(copy(workload, Path.cwd()))


@app.command()
def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Of the workload.")],
    data: Annotated[Path, typer.Option(help="A folder of images, an archive, or an array in a .npy or .npz file.")],
    budget: Annotated[str, typer.Option(help="Time for all of the pipeline, such as 20min, 8h or 1h30min.")] = "2h",
    methods: Annotated[
        str, typer.Option(metavar="NAMES", help="Methods beside edm, which the others start from.")
    ] = "edm,ect,sct",
    resolution: Annotated[int, typer.Option(min=0, help="Of the images; 0 for what suits the budget.")] = 0,
    subfolder: Annotated[str, typer.Option(help="The images below it alone, such as train.")] = "",
) -> None:
    """Write a workload for your own images.

    Reads the images, looks at the machine, measures a few training steps, and writes workloads/NAME.yaml: a choice that
    fits memory and budget, with a reason beside every value. Refused where there is such a workload, or nothing fits.

    \b
    Example:
      cmlab new mine --data ~/photos --budget 2h
    """
    from cmcore.commands.new import new as write

    path = context.ensure_object(Call).start / data.expanduser()
    chosen = {"budget": budget, "methods": methods, "resolution": resolution, "subfolder": subfolder}
    show(write(name, path, Path.cwd(), **chosen))


@app.command()
def plan(
    workload: Annotated[
        str,
        typer.Argument(
            help="A file of workloads/, by its name.", show_default="params.yaml", autocompletion=complete.workloads
        ),
    ] = "",
    gpu: Annotated[str, typer.Option(help="The machine: h100, a100, rtx4090, ..., or cpu for this one.")] = "h100",
    gpus: Annotated[int, typer.Option(help="How many of them.")] = 1,
    price: Annotated[float | None, typer.Option(help="Of one for an hour: adds the cost.")] = None,
    efficiency: Annotated[
        float | None, typer.Option(help="Share of the peak matrix rate that training reaches.", show_default="0.4")
    ] = None,
    shard: Annotated[bool, typer.Option("--shard", help="Networks spread over the machines: compute.shard.")] = False,
    bandwidth: Annotated[
        float | None, typer.Option(help="GB a second, each way, between machines.", show_default="the machine's link")
    ] = None,
) -> None:
    """Estimate operations, memory, time and cost of a workload.

    Reads a parameter file, and neither data nor a GPU; with --gpu cpu it measures some steps. Writes nothing.

    \b
    Example:
      cmlab plan imagenet64 --gpu h100 --gpus 64 --price 2.5
    """
    from cmcore.commands.plan import lines

    chosen = {"gpu": gpu, "gpus": gpus, "price": price, "efficiency": efficiency}
    show(lines(Path.cwd(), workload, **chosen, shard=shard, bandwidth=bandwidth))


@app.command()
def tune(
    name: Annotated[str, typer.Argument(help="An entry of tune in params.yaml.", autocompletion=complete.searches)],
) -> None:
    """Search for better parameters.

    Runs a search of the active workload, or continues it, and makes the report anew.
    Writes reports/<workload>/tune/NAME; params.yaml stays as it is until `cmlab adopt NAME`.

    \b
    Example:
      cmlab tune ect_schedule
    """
    from cmcore.commands.tune import tune as search
    from cmcore.pipeline.turn import turn

    require_own_code(Path.cwd())
    with turn(Path.cwd(), f"{NAME} tune {name}", wait=False):
        raise typer.Exit(search(name))


@app.command()
def adopt(
    name: Annotated[str, typer.Argument(help="A search that has run.", autocompletion=complete.searches)],
) -> None:
    """Write what a search found into params.yaml.

    Changes its best values alone, comments kept, in params.yaml and in the workload's own file where that was the same.

    \b
    Example:
      cmlab adopt ect_schedule
    """
    from cmcore.commands.adopt import adopt as write

    show(write(name, Path.cwd()))
