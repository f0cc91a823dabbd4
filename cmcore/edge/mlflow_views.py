"""The pages of MLflow that a reproduction opens on: columns and charts as a view that its experiment keeps.

MLflow stores a view that was shared in a tag of the experiment, and a link names the tag. What is written here is what
its page writes there.
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmcore.edge.mlflow_writer import NOTE, STEPPED, Store, TrackingError
from cmcore.errors import reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

COMPARISON, TRAINING = "comparison", "training"  # names of views
VIEW = "mlflow.sharedViewState."  # beginning of the tags
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow takes it for one of a language model's
MOST = 100  # bars of a chart
BY_NFE = "eval_by_nfe"  # the group of metrics whose steps are function evaluations
WIDE = (STEPPED, BY_NFE)  # groups whose charts take the whole width


def _id(*words: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(words)))


def bars(section: str, metric: str, title: str) -> dict[str, Any]:
    """A bar for each run."""
    return {**_card("BAR", section, metric, title), "metricKey": metric}


def lines(section: str, metric: str, title: str, *, logarithmic: bool = False) -> dict[str, Any]:
    """A line for each run over the metric's steps."""
    scale = "log" if logarithmic else "linear"
    return {
        **_card("LINE", section, metric, title), "metricKey": metric, "selectedMetricKeys": [metric],
        "xAxisKey": "step", "xAxisScaleType": scale, "scaleType": scale, "lineSmoothness": 0, "displayPoints": True,
        "useGlobalXaxisKey": False, "useGlobalLineSmoothing": False, "selectedXAxisMetricKey": "", "range": {},
    }  # fmt: skip


def images(section: str, key: str, title: str) -> dict[str, Any]:
    """The images of each run, with a slider for their steps."""
    return {**_card("IMAGE", section, key, title), "imageKeys": [key], "step": 0}


def _card(kind: str, section: str, key: str, title: str) -> dict[str, Any]:
    return {
        "type": kind, "uuid": _id(section, kind, key), "metricSectionId": _id(section), "displayName": title,
        "runsCountToCompare": MOST, "deleted": False, "isGenerated": False,
    }  # fmt: skip


def view(
    where: Mapping[str, str],
    columns: Sequence[str],
    sections: Mapping[str, Sequence[Mapping[str, Any]]],
    order: str = "",
) -> dict[str, Any]:
    """A view of the runs of an experiment.

    Args:
        where: tags of the runs to show.
        columns: of the table: `tags.name`, `metrics.name` or `params.name`.
        sections: the charts under each heading; a heading without charts is for those that MLflow adds, folded.
        order: the column that the runs are sorted by, the least first.
    """
    kind, _, name = order.partition(".")
    return {
        "searchFilter": " and ".join(f"tags.{key} = '{value}'" for key, value in where.items()),
        "orderByKey": f"{kind}.`{name}`" if order else "attributes.start_time",
        "orderByAsc": bool(order),
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [f"{kind}.`{name}`" for kind, _, name in (one.partition(".") for one in columns)],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [card for cards in sections.values() for card in cards],
        "compareRunSections": [
            {
                "uuid": _id(name), "name": name, "display": bool(cards), "isReordered": True, "deleted": False,
                "isGenerated": False, "columns": 1 if name in WIDE else 2,
                "cardHeight": 600 if name in WIDE else 320,
            }
            for name, cards in sections.items()
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
        "useGroupedValuesInCharts": True,
        "groupBy": None,
        **{name: {} for name in ("runsExpanded", "runsVisibilityMap", "groupsExpanded", "columnWidths")},
        **{name: [] for name in ("runsPinned", "runsHidden", "columnOrder")},
        "viewMaximized": False,
        "runListHidden": False,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }  # fmt: skip


def comparison(mark: str, fd: Iterable[int], others: Iterable[str], metrics: Iterable[str]) -> dict[str, Any]:
    """The table's rows: quality over function evaluations as lines, and final values as bars.

    Args:
        mark: of the reproduction.
        fd: numbers of function evaluations with a Frechet distance.
        others: names of further final values, without `eval/`.
        metrics: those over function evaluations, without `eval_by_nfe/`; that of the Frechet distance alone is drawn.
    """
    names = [f"fd_nfe{nfe}" for nfe in fd]
    return view(
        {"reproduction": mark, "compared": "yes"},
        ["tags.method", "tags.init", "tags.seeds", "params.train.images", *(f"metrics.eval/{name}" for name in names)],
        {
            BY_NFE: [
                # MLflow adds a chart of every metric of the group that is not said to be deleted.
                {**lines(BY_NFE, f"{BY_NFE}/{name}", f"{name} over NFE", logarithmic=True), "deleted": name != "fd"}
                for name in sorted({*metrics, "fd"})
            ],
            "eval": [
                *(bars("eval", f"eval/{name}", f"Frechet distance at {name[6:]} NFE") for name in names),
                *(bars("eval", f"eval/{name}", name) for name in others),
            ],
            **dict.fromkeys(("eval_std", "snapshots", "train"), ()),
        },
        f"metrics.eval/{names[0]}" if names else "",
    )


def training(mark: str) -> dict[str, Any]:
    """The first seed of every run: losses, quality on the way, and samples that step through training."""
    return view(
        {"reproduction": mark, "replicate": "0"},
        ["tags.method", "tags.init", "metrics.train/loss", "metrics.train/grad_norm"],
        {
            STEPPED: [images(STEPPED, STEPPED, "Samples, from the same noise")],
            "snapshots": [lines("snapshots", "snapshots/fd_nfe1", "Frechet distance at 1 NFE over images")],
            "train": [lines("train", "train/loss", "Loss over images")],
            **dict.fromkeys(("eval", BY_NFE), ()),
        },
        "metrics.train/loss",  # sorted by the time of creation, MLflow folds runs below their parents
    )


def keep_views(client: "MlflowClient", experiment: str, note: str, views: Mapping[str, Mapping[str, Any]]) -> None:
    """Write views and description to an experiment, where they differ from what it has."""
    held = client.get_experiment(experiment).tags
    told = {VIEW + name: json.dumps(one, separators=(",", ":")) for name, one in views.items()}
    for key, value in {**KIND, NOTE: note, **told}.items():
        if held.get(key) != value:
            client.set_experiment_tag(experiment, key, value)


def links(store: Store, address: str) -> dict[str, str]:
    """The pages of the newest reproduction, by view; the experiment's runs, or the root, where there is none yet.

    Args:
        store: where runs are kept.
        address: of MLflow's server.

    Raises:
        TrackingError: the store does not answer.
    """
    try:
        from mlflow import MlflowClient

        found = MlflowClient(store.uri).get_experiment_by_name(store.experiment)
    except Exception as error:  # of MLflow, SQLAlchemy, alembic, requests or sqlite
        raise TrackingError(f"MLflow at {store.uri} does not answer: {reason(error, 300)}") from error
    if found is None:
        return {"runs": address}
    page = f"{address}/#/experiments/{found.experiment_id}/runs?"
    kept = [name for name in (COMPARISON, TRAINING) if VIEW + name in found.tags]
    shared = {name: f"{page}viewStateShareKey={name}&compareRunsMode=CHART" for name in kept}
    return shared or {"runs": f"{page}compareRunsMode=CHART"}
