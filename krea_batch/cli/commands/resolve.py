"""`krea-batch resolve`: decisions about ambiguous jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from krea_batch.cli.options.run_options import api_key_file_option, setting_option
from krea_batch.settings import KEY_VARIABLE

if TYPE_CHECKING:
    from krea_batch.ledger import AmbiguousJob
    from krea_batch.maintenance.resolve import AmbiguousJobs

MAX_SHOWN_CHARS = 100  # chosen: of a prompt or an answer; fits a line of most terminals


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.argument("jobs", nargs=-1, metavar="[JOB]…")
@click.option("--list", "listed", is_flag=True, help="List the ambiguous jobs (the default).")
@click.option("--resubmit", is_flag=True, help="Submit the jobs again in the next run; they may be charged twice.")
@click.option("--abandon", is_flag=True, help="Cancel the jobs; whether they were charged remains unknown.")
@click.option(
    "--adopt",
    multiple=True,
    metavar="JOB=REQUEST_ID",
    help="The job was accepted under this request_id (see the provider's dashboard, or ask its support); "
    "the next run downloads the image (repeatable). The gateway must know the request_id.",
)
@setting_option("gateway")
@api_key_file_option(help=f"Read the API key from a file instead of {KEY_VARIABLE}; only --adopt needs it.")
@click.option("--simulate", is_flag=True, help="With --adopt: the run used --simulate.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def resolve(
    out: Path,
    jobs: tuple[str, ...],
    listed: bool,
    resubmit: bool,
    abandon: bool,
    adopt: tuple[str, ...],
    gateway: str,
    api_key_file: Path | None,
    simulate: bool,
    as_json: bool,
) -> None:
    """Decide about the ambiguous jobs of the run in OUT: all of them, or only each given JOB.

    A job is ambiguous if it was submitted and no answer shows whether it was accepted and charged. --abandon also
    ends a JOB that is timed_out. This command submits nothing. Afterwards, run the same command as before to resume.
    """
    from krea_batch.maintenance.resolve import AmbiguousJobs, list_ambiguous

    actions = [name for name, on in (("--list", listed), ("--resubmit", resubmit), ("--abandon", abandon)) if on]
    actions += ["--adopt"] * bool(adopt)
    if len(actions) > 1:
        raise click.UsageError(f"{' and '.join(actions)} cannot be combined; use one at a time")
    if not actions or listed:
        _print_ambiguous([job for job in list_ambiguous(out) if not jobs or job.job_id in jobs], out, as_json=as_json)
        return
    if adopt and jobs:
        raise click.UsageError("--adopt cannot be combined with JOB arguments")
    request_ids = _parse_adopt(adopt)
    with AmbiguousJobs(out) as ambiguous:
        if request_ids:
            ambiguous.check_adoption(request_ids)
            _confirm(request_ids, out, gateway, api_key_file, simulate=simulate)
        decided = _decide(ambiguous, jobs, request_ids, resubmit=resubmit)
        remaining = ambiguous.jobs
    _print_decision(decided, remaining, is_alone=ambiguous.is_alone, as_json=as_json)


def _decide(
    ambiguous: AmbiguousJobs, jobs: tuple[str, ...], request_ids: dict[str, str], *, resubmit: bool
) -> dict[str, int]:
    """Apply the decision, and return its name and the number of jobs."""
    if request_ids:
        ambiguous.adopt(request_ids)
        return {"adopted": len(request_ids)}
    chosen = jobs or [job.job_id for job in ambiguous.jobs]
    if resubmit:
        ambiguous.resubmit(chosen)
        return {"resubmitted": len(chosen)}
    ambiguous.abandon(chosen)
    return {"abandoned": len(chosen)}


def _confirm(
    request_ids: dict[str, str], out: Path, gateway: str, api_key_file: Path | None, *, simulate: bool
) -> None:
    """Raise JobError for a request_id that the gateway does not know."""
    from krea_batch.cli.options.run_settings import gateway_key
    from krea_batch.cli.ui.run_gateway import open_run_gateway
    from krea_batch.engine.event_loop import run_event_loop
    from krea_batch.maintenance.resolve import confirm
    from krea_batch.settings import Settings

    key = gateway_key(api_key_file, simulate=simulate)
    settings = Settings.from_options(out=out, gateway=gateway)

    async def poll_each() -> None:
        async with open_run_gateway(settings, key, simulate=simulate) as client:
            await confirm(request_ids, client.poll, interval_s=settings.poll_interval_s)

    run_event_loop(poll_each)


def _parse_adopt(adopt: tuple[str, ...]) -> dict[str, str]:
    """Return request_ids by job id. A job id may contain an equals sign, a request_id cannot."""
    pairs: dict[str, str] = {}
    for text in adopt:
        job_id, equals, request_id = text.rpartition("=")
        if not (job_id and equals and request_id) or job_id in pairs:
            problem = "is given more than once" if job_id in pairs else "is not JOB=REQUEST_ID"
            raise click.BadParameter(f"{text!r} {problem}", param_hint="'--adopt'")
        pairs[job_id] = request_id
    return pairs


def _print_ambiguous(ambiguous: list[AmbiguousJob], out: Path, *, as_json: bool) -> None:
    import msgspec

    from krea_batch.cli.ui.formatting import pluralize, show, show_json

    if as_json:
        fields = [
            {
                "id": job.job_id,
                "submitted_at": job.submitted_at,
                "reason": job.reason,
                "answer": job.answer.decode("utf-8", "replace") or None,
                "request": msgspec.Raw(job.body),
            }
            for job in ambiguous
        ]
        show_json(msgspec.json.encode({"ambiguous": fields}))
        return
    if not ambiguous:
        show(f"no ambiguous jobs in {out}")
        return
    show(f"{pluralize(len(ambiguous), 'ambiguous job')} in {out}: each may have been charged")
    for job in ambiguous:
        prompt = " ".join(msgspec.json.decode(job.body)["prompt"].split())
        show(f"  {job.job_id}  submitted {job.submitted_at}  {job.reason}", f"      {prompt[:MAX_SHOWN_CHARS]}")
        if job.answer:
            answer = " ".join(job.answer.decode("utf-8", "replace").split())
            show(f"      the answer was: {answer[:MAX_SHOWN_CHARS]}")
    show("decide with --adopt JOB=REQUEST_ID, --resubmit or --abandon")


def _print_decision(decided: dict[str, int], remaining: list[AmbiguousJob], *, is_alone: bool, as_json: bool) -> None:
    import orjson

    from krea_batch.cli.ui.formatting import show, show_json

    if as_json:
        show_json(orjson.dumps(decided | {"ambiguous": len(remaining)}))
        return
    (decision, count) = next(iter(decided.items()))
    show(f"{count:,} {decision}, {len(remaining):,} still ambiguous")
    if decision != "abandoned":
        show("run the same command as before to resume" if is_alone else "the processes that share the run go on")
