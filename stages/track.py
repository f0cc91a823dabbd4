"""The records of an evaluation, as a tracker gets to see them."""

from typing import Any

from cmcore.evaluate.records import from_json
from cmcore.tracking.base import Tracker


def track(metrics: dict[str, Any], tracker: Tracker) -> None:
    """Quality against NFE, and of snapshots against images seen: MLflow draws both as curves, a line per run."""
    for record in map(from_json, metrics["records"]):
        nfe = record.provenance.nfe
        tracker.metrics({f"eval/{record.metric}": record.value, f"eval/{record.metric}_nfe{nfe}": record.value}, nfe)
    for record in map(from_json, metrics["snapshots"]):
        tracker.metrics({f"snapshots/{record.metric}": record.value}, record.provenance.images)
