"""Tests of dashboard: it speaks of the metrics that there are, and of all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from krea_batch.observability import MetricsListener, dashboard
from tests.observability.outcomes import engine_with_listeners, gateway_with_every_outcome
from tests.virtual_time_runs import run_virtual

TARGETS = {"instance"}  # labels that Prometheus adds to whatever it fetches
SELECTOR = re.compile(r"\b(krea_batch_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
BY_CLAUSE = re.compile(r"\bby \(([^)]*)\)")


def panels() -> list[dict[str, Any]]:
    all_panels: list[dict[str, Any]] = json.loads(dashboard())["panels"]
    return all_panels


def expressions() -> Iterator[str]:
    """Every PromQL expression of the dashboard, that of its variable too."""
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"]
    for variable in json.loads(dashboard())["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> CollectorRegistry:
    """What a run exports in which everything happens."""
    metrics = MetricsListener()
    gateway, jobs = gateway_with_every_outcome()

    async def main() -> None:
        out = tmp_path_factory.mktemp("run")
        async with engine_with_listeners(out, gateway, metrics, rate="2/s", job_timeout_s=200.0) as engine:
            await engine.run(jobs)

    run_virtual(main())
    return metrics.registry


def exported(registry: CollectorRegistry) -> dict[str, dict[str, set[str]]]:
    """Every series by name, with the values of each of its labels."""
    series: dict[str, dict[str, set[str]]] = {}
    for metric in registry.collect():
        for sample in metric.samples:
            labels = series.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return series


def test_every_name_is_exported(registry: CollectorRegistry) -> None:
    """Each metric, label and value that an expression names is one that a run exports."""
    series = exported(registry)
    for expression in expressions():
        named = SELECTOR.findall(expression)
        assert named, expression
        for name, matchers in named:
            assert name in series, expression
            for label, how, value in MATCHER.findall(matchers):
                assert label in series[name].keys() | TARGETS, expression
                if label not in TARGETS:
                    values = value.split("|") if how in ("=~", "!~") else [value]
                    assert set(values) <= series[name][label], expression
        for group in BY_CLAUSE.findall(expression):
            assert {group} <= {label for name, _ in named for label in series[name]}, expression


def test_every_metric_is_shown(registry: CollectorRegistry) -> None:
    """No metric is exported that the dashboard does not show."""
    named = {name for expression in expressions() for name, _ in SELECTOR.findall(expression)}
    bases = {re.sub("_(total|bucket|count|sum)$", "", name) for name in named}
    assert {metric.name for metric in registry.collect()} == bases


def test_panels_name_what_their_lines_are_split_by() -> None:
    """A legend names a label by which its expression is split, so that lines are told apart."""
    for panel in panels():
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert f"by ({label})" in target["expr"], target


def test_panels_lie_beside_each_other() -> None:
    """No two panels share a place in the grid of 24 columns, each has its own number and says what it shows."""
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        assert panel["description"]
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_every_run_is_chosen_by_the_same_variables() -> None:
    """Each expression is narrowed to the runs chosen above, and asks the Prometheus chosen there."""
    for panel in panels():
        for target in panel["targets"]:
            assert target["expr"].count("krea_batch_") == target["expr"].count('instance=~"$instance"')
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
