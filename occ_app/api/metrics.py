"""GET /metrics: what Prometheus collects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from flask import Blueprint, Flask, Response, g

from occ_app import errors
from occ_app.api.measures import Histogram, Measure, Metric, Refusals
from occ_app.api.services import measures
from occ_app.web import callers

if TYPE_CHECKING:
    from prometheus_client import Metric as Family
from occ_app.web.contracts import contract

bp = Blueprint("metrics", __name__)


@bp.get("/metrics")
@contract(content={"text/plain": {"schema": {"type": "string"}}})
def metrics() -> Response:
    """Return all measurements in Prometheus' text format."""
    if callers.caller().visible_to is not None:
        raise errors.Forbidden("Metrics cover the executions of all owners; use an admin key.")
    # Loaded when somebody asks for it first; without Prometheus it is never needed.
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Measured(measures()))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


def count_refusals(app: Flask, refusals: Refusals) -> None:
    """Have every refusal of this application counted."""

    @app.after_request
    def count(response: Response) -> Response:
        code = g.pop("refusal", None)
        if code is not None:
            refusals.add(code)
        return response


class _Measured:
    """The measures as a collector of prometheus_client, which asks only for `collect`."""

    def __init__(self, measures: Iterable[Measure]) -> None:
        self._measures = measures

    def collect(self) -> Iterator[Family]:
        for measure in self._measures:
            for metric in measure():
                yield _family(metric)


def _family(metric: Metric | Histogram) -> Family:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if isinstance(metric, Histogram):
        took = metric.distribution
        limits = [(str(float(limit)), float(count)) for limit, count in took.up_to]
        return HistogramMetricFamily(
            metric.name, metric.meaning, buckets=[*limits, ("+Inf", float(took.count))], sum_value=took.seconds
        )
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = kind(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in metric.values.items():
        family.add_metric(labels, value)
    return family
