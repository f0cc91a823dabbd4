"""`cmlab`, the command line. Each command imports what it needs by itself, so that help and completion come at once.

Exit codes: 0; 1 for work that failed, 2 for a wrong parameter or argument, 128 + n for signal n. An error is one line.
"""

import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from cmcore.closure import ROOT
from cmcore.commands import complete
from cmcore.commands.overrides import overriding, recover, running
from cmcore.commands.place import CommandError, project_root, require_own_code, workload_file
from cmcore.config import ConfigError
from cmcore.edge.ray_family import leave
from cmcore.pipeline.signals import SIGNALLED, received, status, stop_on_signals

NAME = "cmlab"
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
Device = Literal["auto", "cpu", "cuda"]
ToyData = Literal["mixture", "checkerboard", "spirals", "all"]
ExportKind = Literal["diffusers", "onnx", "torch", "peft"]
ClassCounts = Literal["none", "reference", "uniform"]
EditTask = Literal["inpaint", "colourise", "super-resolution", "stroke", "denoise", "interpolate"]
MODEL = "A run of params.yaml, WORKLOAD/RUN, a folder of results, or a weight file, also a public one."
EMA = "Average of the weights: a name in train.ema, raw, or the width of a power-function EMA, such as 0.05."

app = typer.Typer(
    name=NAME,
    rich_markup_mode=None,  # its import takes longer than all of the help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass
class Call:
    """One call of the command line."""

    words: Sequence[str] = ()
    command: str = ""
    start: Path = field(default_factory=Path.cwd)


def show(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        print(line, flush=True)


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
    efficiency: Annotated[float, typer.Option(help="Share of the peak matrix rate that training reaches.")] = 0.4,
    shard: Annotated[bool, typer.Option("--shard", help="Networks spread over the machines: compute.shard.")] = False,
    bandwidth: Annotated[
        float | None, typer.Option(help="GB a second, each way, between machines.", show_default="the machine's link")
    ] = None,
) -> None:
    """Estimate operations, memory, time and cost of a workload.

    Reads a parameter file, and neither data nor a GPU. Writes nothing.

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


@app.command()
def sample(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help=MODEL, autocompletion=complete.runs)],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="NAME.png for a grid, NAME.npz, or a folder for one file each.")
    ] = Path("samples.png"),
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Images.")] = 64,
    steps: Annotated[
        int, typer.Option(min=0, help="Steps of the sampler; 0 takes the first of the run's rows in the table.")
    ] = 0,
    levels: Annotated[
        str, typer.Option(metavar="S1,S2,..", help="Noise levels sigma of a few-step model's steps after the first.")
    ] = "",
    solver: Annotated[
        str, typer.Option(help="Of a diffusion model: euler, euler_linear, heun, heun_churn, dpmpp_2m or dpmpp_2s.")
    ] = "",
    guidance: Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")] = None,
    labels: Annotated[
        str, typer.Option(metavar="K1,K2,..", help="Classes, in turn; by default each is drawn at random.")
    ] = "",
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A caption, of a network that reads them; several in turn, by default those of the data."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise: the same gives the same images.")] = 0,
    ema: Annotated[str, typer.Option(help=EMA)] = "",
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is some.")] = "auto",
    batch: Annotated[int, typer.Option(min=0, help="Images at once; 0 for what suits the device.")] = 0,
    columns: Annotated[int, typer.Option(min=0, help="Of the grid; 0 for a square.")] = 0,
    method: Annotated[str, typer.Option(help="Of a public weight file; by default edm, a diffusion model.")] = "",
) -> None:
    """Draw images of a trained run.

    Reads weights and writes the images, and nothing else. A diffusion model is sampled by steps of an ODE solver, a
    few-step model by so many evaluations.

    \b
    Examples:
      cmlab sample ect --steps 2 --count 64 --seed 0 --out grid.png
      cmlab sample edm --solver dpmpp_2m --steps 10 --out images
      cmlab sample cifar10/ect --levels 5.4,0.8 --out images.npz
      cmlab sample outputs/digits/runs/ect/snapshots/000100096.safetensors
    """
    from cmcore.commands.sample import sample as draw

    start = context.ensure_object(Call).start
    show(
        [
            draw(
                what, Path.cwd(), start, out=out, count=count, steps=steps, levels=levels, solver=solver,
                guidance=guidance, labels=labels, prompts=prompt or [], seed=seed, ema=ema, device=device, batch=batch,
                columns=columns, method=method,
            )
        ]
    )  # fmt: skip


@app.command()
def levels(
    name: Annotated[str, typer.Argument(help="A run of params.yaml.", autocompletion=complete.runs)],
    steps: Annotated[int, typer.Option(min=2, max=8, help="The most; levels of fewer are found on the way.")] = 4,
    samples: Annotated[int, typer.Option(min=100, help="For each distance.")] = 2000,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is some.")] = "auto",
) -> None:
    """Search for the noise levels of a few-step model's steps.

    Reads weights and reference of the active workload. Writes reports/<workload>/levels/NAME.json, which remembers
    every distance, and a figure of distance against level. The noise is not that of the tables.

    \b
    Example:
      cmlab levels ect --steps 3
    """
    from cmcore.commands.levels import levels as search

    show(search(name, Path.cwd(), steps=steps, samples=samples, device=device))


@app.command()
def edit(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help=MODEL, autocompletion=complete.runs)],
    task: Annotated[EditTask, typer.Option(help="The edit.")],
    image: Annotated[Path | None, typer.Option(help="Image file; interpolate takes none.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Of inpaint: an image, white where pixels are missing.")] = None,
    factor: Annotated[
        int | None, typer.Option(min=2, help="Of super-resolution, for an image to shrink first; by default 2.")
    ] = None,
    sigma: Annotated[float, typer.Option(min=0, help="Level of the noise to remove, or of a stroke's start.")] = 0.0,
    out: Annotated[Path, typer.Option("-o", "--out", help="NAME.png, NAME.npz, or a folder.")] = Path("edited.png"),
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Results, each from other noise.")] = 1,
    steps: Annotated[int, typer.Option(min=0, help="Evaluations; 0 for 40, or 2 of a stroke.")] = 0,
    label: Annotated[int | None, typer.Option(help="Class, of a conditional network.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise; interpolate goes to the next.")] = 0,
    ema: Annotated[str, typer.Option(help=EMA)] = "",
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is some.")] = "auto",
    method: Annotated[str, typer.Option(help="Of a public weight file; by default edm, a diffusion model.")] = "",
) -> None:
    """Edit an image with a trained run, without training.

    Reads weights and image, writes the results. Consistency models edit by restoring what is known after each
    step, diffusion models by replacing it before each. The known part of an image stays exactly as it is.

    \b
    Examples:
      cmlab edit ect --task inpaint --image in.png --mask mask.png --out out.png
      cmlab edit ect --task super-resolution --image small.png --count 16 --out out.png
      cmlab edit edm --task denoise --image in.png --sigma 0.4
      cmlab edit ect --task interpolate --count 8 --out way.png
    """
    from cmcore.commands.edit import edit as change

    start = context.ensure_object(Call).start
    show(
        change(
            what, Path.cwd(), start, task=task, image=image, mask=mask, factor=factor, sigma=sigma, out=out,
            count=count, steps=steps, label=label, seed=seed, ema=ema, device=device, method=method,
        )
    )  # fmt: skip


@app.command()
def export(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help=MODEL, autocompletion=complete.runs)],
    to: Annotated[
        ExportKind,
        typer.Option(
            help="A folder for diffusers, a graph of ONNX, a program of torch.export, or an adapter for peft."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder, NAME.onnx or NAME.pt2.")],
    nfe: Annotated[
        int,
        typer.Option(
            min=0,
            help="Evaluations of the row whose levels the pipeline has, by default the first; or whose sampler becomes "
            "one map from noise to images, by default the function of image and noise level.",
        ),
    ] = 0,
    ema: Annotated[str, typer.Option(help=EMA)] = "",
    method: Annotated[str, typer.Option(help="Of a public weight file; by default edm, a diffusion model.")] = "",
) -> None:
    """Export a model for use without this project.

    Reads weights. Writes a folder with weights, pipeline and a card with what was measured; or a graph or a program
    alone.

    \b
    Examples:
      cmlab export ect --to diffusers --nfe 2 --out ect-pipeline
      cmlab export ect --to onnx --nfe 2 --out ect.onnx
      cmlab export ect --to torch --out ect.pt2
      cmlab export lcm_lora --to peft --out lcm-lora
    """
    from cmcore.commands.export import export as write

    start = context.ensure_object(Call).start
    show([write(what, Path.cwd(), start, to=to, out=out, nfe=nfe, ema=ema, method=method)])


@app.command()
def gallery(
    context: typer.Context,
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL, autocompletion=complete.runs)],
    images: Annotated[Path, typer.Option(help="Folder of image files: the truth.")],
    count: Annotated[int, typer.Option("-n", "--count", min=2, help="Images, the first by name.")] = 8,
    steps: Annotated[str, typer.Option(metavar="N1,N2,..", help="Evaluations.")] = "40",
    factor: Annotated[int, typer.Option(min=2, help="Of super-resolution.")] = 4,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder.")] = Path("gallery"),
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is some.")] = "auto",
) -> None:
    """Compare models by their edits of known images.

    Takes the middle, the colour or the resolution of images away, lets every model restore it, and writes a figure and
    the errors against the truth into a folder. Reads weights and images.

    \b
    Example:
      cmlab gallery ect edm --images photos --steps 10,40 --out gallery
    """
    from cmcore.commands.gallery import gallery as draw

    start = context.ensure_object(Call).start
    show(
        draw(
            models, Path.cwd(), start, images=images, count=count, steps=steps, factor=factor, out=out, seed=seed,
            device=device,
        )
    )  # fmt: skip


@app.command()
def toy(
    context: typer.Context,
    data: Annotated[ToyData, typer.Option(help="The points.")] = "spirals",
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder.")] = Path("toy"),
    images: Annotated[int, typer.Option(min=0, hidden=True, help="Points seen by a run; 0 for those of toy.yaml.")] = 0,
) -> None:
    """Show every method in the plane, beside the exact flow.

    Trains every method on points of the plane, for a minute or two of one core. Writes a page, figures and numbers into
    a folder.

    \b
    Example:
      cmlab toy --data checkerboard --out toy
    """
    from cmcore.commands.toy import toy as draw

    show(draw(Path.cwd(), context.ensure_object(Call).start / out, data, images=images))


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


@app.command()
def import_weights(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            help="A network of EDM, EDM2, Consistency Models or ECT: .pkl or .pt; of this project: .safetensors; or a "
            "folder of diffusers with a consistency model."
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
