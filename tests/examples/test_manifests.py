"""The manifests for Docker Compose and Kubernetes are valid YAML, and their commands exist with these options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from krea_batch.cli.app import app

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "examples" / "monitoring"
MANIFESTS = [*sorted((ROOT / "examples" / "cluster").glob("*.yaml")), MONITORING / "compose.yaml"]
ANSWER_S = 60  # in which a POST is answered (Settings.request_timeout_s)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def pods(document: dict[str, Any]) -> Iterator[tuple[list[str], float]]:
    """Yield the arguments of each container, and the seconds that it has after SIGTERM."""
    for service in document.get("services", {}).values():
        if "command" in service:
            yield service["command"], float(service["stop_grace_period"].removesuffix("s"))
    if pod := document.get("spec", {}).get("template", {}).get("spec"):
        for container in pod["containers"]:
            yield container["args"], pod["terminationGracePeriodSeconds"]


COMMANDS = [
    pytest.param(arguments, grace_s, id=f"{path.parent.name} {path.stem} {arguments[0]}")
    for path in MANIFESTS
    for document in documents(path)
    for arguments, grace_s in pods(document)
]


def parse(arguments: list[str]) -> dict[str, Any]:
    """Return the options of a command, as the command line parses them. Raises click.UsageError."""
    with click.Context(app) as context:
        name, command, rest = app.resolve_command(context, list(arguments))
    assert command
    return command.make_context(name, rest, resilient_parsing=False).params


def test_there_are_manifests() -> None:
    """One engine and several workers, for Docker Compose and for Kubernetes; and a run with monitoring."""
    assert [path.stem for path in MANIFESTS] == ["compose-workers", "compose", "engine", "workers", "compose"]
    assert len(COMMANDS) == 7


@pytest.mark.parametrize(("arguments", "grace_s"), COMMANDS)
def test_a_command(arguments: list[str], grace_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command takes these options, limits what is spent, and has time to end after SIGTERM."""
    monkeypatch.chdir(tmp_path)
    options = parse(arguments)
    assert options["max_charges"] > 0
    assert grace_s >= options.get("drain", 0) + ANSWER_S


COMPOSE_FILES = [path for path in MANIFESTS if path.stem.startswith("compose")]


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_what_a_compose_file_names(path: Path) -> None:
    """The Dockerfile and the mounted files exist; other images have a version; krea-batch has a read-only root."""
    (document,) = documents(path)
    for service in document["services"].values():
        if service["image"] == "krea-batch":
            assert (path.parent / service["build"] / "Dockerfile").is_file()
            assert service["init"]
            assert service["read_only"]
        else:
            assert ":" in service["image"]
        for source in (volume.partition(":")[0] for volume in service.get("volumes", [])):
            assert source in document["volumes"] or (path.parent / source).exists()


def test_monitoring() -> None:
    """Prometheus scrapes the port of the run, Grafana asks this Prometheus and shows krea-batch's own dashboard."""
    (compose,) = documents(MONITORING / "compose.yaml")
    services = compose["services"]
    port = parse(services["engine"]["command"])["metrics_port"].rpartition(":")[2]
    (scrape,) = documents(MONITORING / "prometheus.yml")
    assert scrape["scrape_configs"][0]["static_configs"] == [{"targets": [f"engine:{port}"]}]
    (datasources,) = documents(MONITORING / "datasources.yaml")
    assert [each["url"] for each in datasources["datasources"]] == ["http://prometheus:9090"]
    (dashboards,) = documents(MONITORING / "dashboards.yaml")
    folder = dashboards["providers"][0]["options"]["path"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    (shown,) = (source for source, target in mounts.items() if target.startswith(folder))
    printed = CliRunner().invoke(app, ["dashboard"]).output
    assert json.loads((MONITORING / shown).read_text("utf-8")) == json.loads(printed)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_no_secret_is_in_a_manifest(path: Path) -> None:
    """Keys and passwords come from the environment or from secrets, and volumes are declared."""
    for document in documents(path):
        for service in document.get("services", {}).values():
            secrets = {name: value for name, value in service.get("environment", {}).items() if "KEY" in name}
            assert all(value.startswith("${") for value in secrets.values())
        pod = document.get("spec", {}).get("template", {}).get("spec", {})
        declared = {volume["name"] for volume in pod.get("volumes", [])}
        for container in (*pod.get("containers", []), *pod.get("initContainers", [])):
            assert {mount["name"] for mount in container["volumeMounts"]} <= declared
            assert "env" not in container
