"""A scripted gateway at which jobs have every outcome, and functions to read a metrics registry."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from krea_batch import Engine, Job
from krea_batch.gateway.url_policy import DownloadError
from krea_batch.rules.verdicts import (
    Ambiguous,
    Errored,
    Failed,
    NotSent,
    PollFailed,
    Refusal,
    Refused,
    Waiting,
)
from krea_batch.testing import ACCEPT, FINISH, IMAGE, ScriptedGateway
from krea_batch.testing.script_entries import DownloadStep, PollStep, SubmitStep

RATE_LIMITED = Refused(Refusal.RATE_LIMITED, 429, "too many", 2.0)

_SUBMIT_SCRIPTS: dict[str, list[SubmitStep]] = {
    "rejected": [Refused(Refusal.REJECTED, 400, "bad prompt")],
    "ambiguous": [Ambiguous("the connection broke")],
    "refused, then accepted": [RATE_LIMITED, RATE_LIMITED, ACCEPT],
    "not sent, then accepted": [NotSent("no route"), ACCEPT],
}
_POLL_SCRIPTS: dict[str, list[PollStep]] = {
    "failed": [Waiting("QUEUED"), Failed("nsfw")],
    "errored": [Errored("worker died")],
    "errored, then finished": [Errored("worker died"), FINISH],
    "timed out": [Waiting("QUEUED")],
    "poll error": [PollFailed("garbled"), FINISH],
}
_DOWNLOAD_SCRIPTS: dict[str, list[DownloadStep]] = {
    "download error": [DownloadError("cut"), IMAGE],
}
OUTCOMES = ("plain", *_SUBMIT_SCRIPTS, *_POLL_SCRIPTS, *_DOWNLOAD_SCRIPTS)


def gateway_with_every_outcome() -> tuple[ScriptedGateway, list[Job]]:
    """Return a gateway, and jobs whose prompts name their outcomes at it."""
    gateway = ScriptedGateway()
    gateway.submit_script.update(_SUBMIT_SCRIPTS)
    gateway.poll_script.update(_POLL_SCRIPTS)
    gateway.download_script.update(_DOWNLOAD_SCRIPTS)
    return gateway, [Job(prompt=prompt, id=f"one {prompt}", aspect_ratio="16:9") for prompt in OUTCOMES]


def engine_with_listeners(
    out: Any, gateway: ScriptedGateway, *listeners: Callable[[Any], None], **options: Any
) -> Engine:
    """Return an engine with these listeners."""
    return Engine(out, gateway_client=gateway, listeners=listeners, random=Random(0), **options)


def metric_values(registry: CollectorRegistry, name: str) -> dict[str, float]:
    """Return the values of a metric by the value of its only label."""
    return {
        next(iter(sample.labels.values()), ""): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == f"krea_batch_{name}"
    }


def metric_value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """Return one value of a metric. Fails if the registry does not have it."""
    value = registry.get_sample_value(f"krea_batch_{name}", labels)
    assert value is not None, name
    return value
