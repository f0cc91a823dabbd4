"""All stages in the working directory, one after the other."""

from collections.abc import Iterable

from stages import edit, evaluate, prepare, reference, tabulate, train


def every_stage(runs: Iterable[str]) -> None:
    prepare.main()
    reference.main()
    for name in runs:
        train.main(name)
        evaluate.main(name)
    edit.main()
    tabulate.main()
