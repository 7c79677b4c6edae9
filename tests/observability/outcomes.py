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
    Finished,
    NotSent,
    PollFailed,
    Refusal,
    Refused,
    Waiting,
)
from krea_batch.testing.scripted_gateway import ACCEPT, ScriptedGateway

RATE_LIMITED = Refused(Refusal.RATE_LIMITED, 429, "too many", 2.0)

_SUBMIT_SCRIPTS: dict[str, list[Any]] = {
    "rejected": [Refused(Refusal.REJECTED, 400, "bad prompt")],
    "ambiguous": [Ambiguous("the connection broke")],
    "refused, then accepted": [RATE_LIMITED, RATE_LIMITED, ACCEPT],
    "not sent, then accepted": [NotSent("no route"), ACCEPT],
}
_POLL_SCRIPTS: dict[str, list[Any]] = {
    "failed": [Waiting("QUEUED"), Failed("nsfw")],
    "errored": [Errored("worker died")],
    "errored, then finished": [Errored("worker died"), Finished],
    "timed out": [Waiting("QUEUED")],
    "poll error": [PollFailed("garbled"), Finished],
}
_DOWNLOAD_SCRIPTS: dict[str, list[Any]] = {
    "download error": [DownloadError("cut"), None],
}
OUTCOMES = ("plain", *_SUBMIT_SCRIPTS, *_POLL_SCRIPTS, *_DOWNLOAD_SCRIPTS)


def gateway_with_every_outcome() -> tuple[ScriptedGateway, list[Job]]:
    """Return a gateway, and jobs whose prompts name their outcomes at it."""
    gateway = ScriptedGateway()
    for scripts, scripts_by_prompt in (
        (gateway.submit_script, _SUBMIT_SCRIPTS),
        (gateway.poll_script, _POLL_SCRIPTS),
        (gateway.download_script, _DOWNLOAD_SCRIPTS),
    ):
        scripts.update({prompt: list(script) for prompt, script in scripts_by_prompt.items()})
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
