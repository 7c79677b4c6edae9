"""A gateway under which jobs meet every fate that there is, and what a registry says afterwards."""

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
    "refused, then taken": [RATE_LIMITED, RATE_LIMITED, ACCEPT],
    "not sent, then taken": [NotSent("no route"), ACCEPT],
}
_POLL_SCRIPTS: dict[str, list[Any]] = {
    "failed": [Waiting("QUEUED"), Failed("nsfw")],
    "errored": [Errored("worker died")],
    "errored, then made": [Errored("worker died"), Finished],
    "timed out": [Waiting("QUEUED")],
    "poll trouble": [PollFailed("garbled"), Finished],
}
_DOWNLOAD_SCRIPTS: dict[str, list[Any]] = {
    "download trouble": [DownloadError("cut"), None],
}
OUTCOMES = ("plain", *_SUBMIT_SCRIPTS, *_POLL_SCRIPTS, *_DOWNLOAD_SCRIPTS)


def gateway_with_every_outcome() -> tuple[ScriptedGateway, list[Job]]:
    """A gateway, and jobs whose prompts name the fates that they meet there."""
    gateway = ScriptedGateway()
    for scripts, scripts_by_prompt in (
        (gateway.submit_script, _SUBMIT_SCRIPTS),
        (gateway.poll_script, _POLL_SCRIPTS),
        (gateway.download_script, _DOWNLOAD_SCRIPTS),
    ):
        scripts.update({fate: list(script) for fate, script in scripts_by_prompt.items()})
    return gateway, [Job(prompt=prompt, id=f"one {prompt}", aspect_ratio="16:9") for prompt in OUTCOMES]


def engine_with_listeners(
    out: Any, gateway: ScriptedGateway, *listeners: Callable[[Any], None], **options: Any
) -> Engine:
    """An engine with listeners."""
    return Engine(out, gateway_client=gateway, listeners=listeners, random=Random(0), **options)


def metric_values(registry: CollectorRegistry, name: str) -> dict[str, float]:
    """The values of a metric by the value of its one label."""
    return {
        next(iter(sample.labels.values()), ""): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == f"krea_batch_{name}"
    }


def metric_value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """One value, which has to be there."""
    value = registry.get_sample_value(f"krea_batch_{name}", labels)
    assert value is not None, name
    return value
