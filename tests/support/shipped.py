"""The workloads of the project. Others may lie beside them: a user's own, which no test is about."""

from cmcore.closure import ROOT

NAMES = (
    "cifar10", "cifar10-jpeg", "cifar10-jpeg-gpu", "cifar10-teacher", "digits", "digits-ablations", "digits-guided",
    "fashion-mnist", "imagenet256", "imagenet512", "imagenet64", "lsun_bedroom256", "lsun_cat256", "shapes-text",
    "spoken-words",
)  # fmt: skip
WORKLOADS = [ROOT / "workloads" / f"{name}.yaml" for name in NAMES]
