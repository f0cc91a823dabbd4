"""`cmlab import-weights`: the family and size of a public weight file, and the parameters that use it."""

from pathlib import Path

from cmcore.assemble.imports import IN_FOLDERS, is_diffusers, mismatches, net_of, read_public, section
from cmcore.assemble.summary import file_digest
from cmcore.commands.place import CommandError

SHOWN = 20  # names that do not match


def describe(path: Path, part: str) -> str:
    """The family, the numbers and the lines to paste.

    Raises:
        CommandError: a folder that holds no such file.
    """
    if path.is_dir():
        found = next((path / file for file in IN_FOLDERS if (path / file).is_file()), None)
        if found is None:
            files = " or ".join(map(str, IN_FOLDERS))
            raise CommandError(f"FILE: expected a weight file, or a folder of diffusers with {files}, got {path}")
        path = found
    public = read_public(path, part)
    lines = mismatches(public, net_of(public))
    classes = f"{public.classes} classes" if public.classes else "unconditional"
    buffers = ("freqs", "phases")
    count = sum(tensor.numel() for name, tensor in public.tensors.items() if not name.endswith(buffers))
    unmatched = [f"{len(lines)} names do not match:", *lines[:SHOWN]] if lines else ["every name and shape matches"]
    chosen = f", part: {part}" if part else ""
    # A file of diffusers says what kind of model it is, and has the same name in every folder.
    known = is_diffusers(path)
    name, method = path.parent.parent.name if known else path.stem, "cd" if known and not public.diffusion else "edm"
    other = "" if known else " # or, of a consistency model, method: cd"
    noise = {"sigma_data": public.sigma_data, **public.noise}
    return "\n".join(
        [
            f"{path.name}: {public.family}, {count:,} parameters",
            f"images: {public.channels} x {public.resolution} x {public.resolution}, {classes}",
            *unmatched,
            "",
            *(
                [f"diffusion: {{{', '.join(f'{key}: {value}' for key, value in noise.items())}}}"]
                if public.noise
                else []
            ),
            f"net: {section(public)}",
            f"conditional: {'true' if public.classes else 'false'}",
            "runs:",
            f"  {name.replace('-', '_')}: {{method: {method}, init: random, teacher: none, weights: {{file: {path}, "
            f"sha256: {file_digest(path)}{chosen}}}}}{other}",
        ]
    )
