"""The sources and the parameters -> outputs/<workload>/code: a digest of the code of every stage and run."""

from pathlib import Path

from cmcore.assemble.project import Sections
from cmcore.atomic import replacing
from cmcore.config import load_yaml, read
from cmcore.pipeline.code import code_file, code_roots, describe_code
from cmcore.pipeline.files import write_json


def main() -> None:
    """Write one file per stage and run."""
    sections = read(Sections, load_yaml("params.yaml"))
    with replacing(Path("outputs", sections.workload, "code").resolve()) as folder:
        for stage, described in describe_code(code_roots(sections)).items():
            write_json(folder / code_file(stage), described)
