"""Tests of the dashboard: it names only metrics that a run exports, and shows all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from krea_batch.observability import MetricsListener, dashboard
from krea_batch.testing import run_virtual
from tests.observability.outcomes import engine_with_listeners, gateway_with_every_outcome

TARGET_LABELS = {"instance"}  # Prometheus adds it to everything it scrapes
SELECTOR = re.compile(r"\b(krea_batch_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
BY_CLAUSE = re.compile(r"\bby \(([^)]*)\)")


def panels() -> list[dict[str, Any]]:
    all_panels: list[dict[str, Any]] = json.loads(dashboard())["panels"]
    return all_panels


def expressions() -> Iterator[str]:
    """Yield every PromQL expression of the dashboard, including those of its variables."""
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"]
    for variable in json.loads(dashboard())["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> CollectorRegistry:
    """The metrics of a run with every outcome."""
    metrics = MetricsListener()
    gateway, jobs = gateway_with_every_outcome()

    async def main() -> None:
        out = tmp_path_factory.mktemp("run")
        async with engine_with_listeners(out, gateway, metrics, rate="2/s", job_timeout_s=200.0) as engine:
            await engine.run(jobs)

    run_virtual(main())
    return metrics.registry


def exported(registry: CollectorRegistry) -> dict[str, dict[str, set[str]]]:
    """Return the exported series by name, with the values of each of their labels."""
    series: dict[str, dict[str, set[str]]] = {}
    for metric in registry.collect():
        for sample in metric.samples:
            labels = series.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return series


def test_every_name_is_exported(registry: CollectorRegistry) -> None:
    """Each metric, label and label value in an expression is one that a run exports."""
    series = exported(registry)
    for expression in expressions():
        named = SELECTOR.findall(expression)
        assert named, expression
        for name, matchers in named:
            assert name in series, expression
            for label, operator, value in MATCHER.findall(matchers):
                assert label in series[name].keys() | TARGET_LABELS, expression
                if label not in TARGET_LABELS:
                    values = value.split("|") if operator in ("=~", "!~") else [value]
                    assert set(values) <= series[name][label], expression
        for group in BY_CLAUSE.findall(expression):
            assert {group} <= {label for name, _ in named for label in series[name]}, expression


def test_every_metric_is_shown(registry: CollectorRegistry) -> None:
    """The dashboard shows every metric that a run exports."""
    named = {name for expression in expressions() for name, _ in SELECTOR.findall(expression)}
    bases = {re.sub("_(total|bucket|count|sum)$", "", name) for name in named}
    assert {metric.name for metric in registry.collect()} == bases


def test_legends_name_the_labels_of_their_expressions() -> None:
    """A label in a legend is one by which its expression is grouped, so that its lines differ."""
    for panel in panels():
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert f"by ({label})" in target["expr"], target


def test_panels_do_not_overlap() -> None:
    """No two panels overlap in the grid of 24 columns; each has an id of its own and a description."""
    used_cells: set[tuple[int, int]] = set()
    for panel in panels():
        box = panel["gridPos"]
        cells = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
        assert not cells & used_cells
        assert box["x"] + box["w"] <= 24
        assert panel["description"]
        used_cells |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_all_panels_use_the_variables_of_the_dashboard() -> None:
    """Each expression selects the chosen instances, and queries the chosen Prometheus."""
    for panel in panels():
        for target in panel["targets"]:
            assert target["expr"].count("krea_batch_") == target["expr"].count('instance=~"$instance"')
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
