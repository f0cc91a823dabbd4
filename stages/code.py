"""The sources and the parameters -> outputs/<workload>/code: digests of every stage's and run's code and files."""

from pathlib import Path

from cmcore.assemble.project import Sections
from cmcore.atomic import replacing
from cmcore.config import load_yaml, read
from cmcore.pipeline.code import code_file, code_roots, describe_code
from cmcore.pipeline.contents import named_files
from cmcore.pipeline.files import write_json


def main() -> None:
    """Write one file per stage and run."""
    sections = read(Sections, load_yaml("params.yaml"))
    place = Path("outputs", sections.workload, "code").resolve()
    found = describe_code(code_roots(sections), named_files(sections), place)
    with replacing(place) as folder:
        for stage, described in found.items():
            write_json(folder / code_file(stage), described)
