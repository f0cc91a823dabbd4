"""Commands that use trained models."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cmcore.commands import complete
from cmcore.commands.line.call import EMA, MODEL, Call, Device, show

ToyData = Literal["mixture", "checkerboard", "spirals", "all"]
ExportKind = Literal["diffusers", "onnx", "torch", "peft"]
EditTask = Literal["inpaint", "colourise", "super-resolution", "stroke", "denoise", "interpolate"]
NEGATIVE = "A caption, or the number of a class, that guidance leads away from; by default none."
app = typer.Typer()


@app.command()
def sample(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help=MODEL, autocompletion=complete.runs)],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="NAME.png for a grid, NAME.npz, NAME.wav of sounds, or a folder for one each."
        ),
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
    guidance: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance, 1 for none; by default the run's.")
    ] = None,
    labels: Annotated[
        str, typer.Option(metavar="K1,K2,..", help="Classes, in turn; by default each is drawn at random.")
    ] = "",
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A caption, of a network that reads them; several in turn, by default those of the data."),
    ] = None,
    negative: Annotated[str | None, typer.Option(help=NEGATIVE)] = None,
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
      cmlab sample edm --prompt "a red circle" --negative "a blue square" --guidance 2
      cmlab sample outputs/digits/runs/ect/snapshots/000100096.safetensors
    """
    from cmcore.commands.sample import sample as draw

    start = context.ensure_object(Call).start
    show(
        [
            draw(
                what, Path.cwd(), start, out=out, count=count, steps=steps, levels=levels, solver=solver,
                guidance=guidance, labels=labels, prompts=prompt or [], negative=negative, seed=seed, ema=ema,
                device=device, batch=batch, columns=columns, method=method,
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
    prompt: Annotated[
        list[str] | None, typer.Option(help="A caption, of a network that reads them; several take turns.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Scale of classifier-free guidance; by default none, and of interpolate the run's."),
    ] = None,
    negative: Annotated[str | None, typer.Option(help=NEGATIVE)] = None,
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
      cmlab edit lcm --task stroke --image in.png --prompt "a red circle above a blue square" --out out.png
    """
    from cmcore.commands.edit import edit as change

    start = context.ensure_object(Call).start
    show(
        change(
            what, Path.cwd(), start, task=task, image=image, mask=mask, factor=factor, sigma=sigma, out=out,
            count=count, steps=steps, label=label, prompts=prompt or [], guidance=guidance, negative=negative,
            seed=seed, ema=ema, device=device, method=method,
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
