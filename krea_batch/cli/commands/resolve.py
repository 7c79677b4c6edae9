"""`krea-batch resolve`: somebody's word on ambiguous jobs comes in; the record of it goes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from krea_batch.ledger import AmbiguousJob
    from krea_batch.maintenance.resolve import AmbiguousJobs


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.argument("jobs", nargs=-1, metavar="[JOB]…")
@click.option("--list", "listed", is_flag=True, help="Show the ambiguous jobs and change nothing (the default).")
@click.option("--resubmit", is_flag=True, help="Have the next run submit them again; they may be paid twice.")
@click.option("--abandon", is_flag=True, help="End them as cancelled; whether they were paid stays unknown.")
@click.option(
    "--adopt",
    multiple=True,
    metavar="JOB=REQUEST_ID",
    help="The job was accepted, under this request_id (look into the provider's dashboard, or ask its support); "
    "the next run fetches the image. May be given often.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def resolve(
    out: Path,
    jobs: tuple[str, ...],
    listed: bool,
    resubmit: bool,
    abandon: bool,
    adopt: tuple[str, ...],
    as_json: bool,
) -> None:
    """Decide what becomes of the ambiguous jobs of the run in OUT: all of them, or each JOB that is named.

    A job is ambiguous when its submit left this machine and no answer proves whether it was accepted, and so
    paid. Nothing is sent from here: run the same command as before to go on.
    """
    from krea_batch.maintenance.resolve import AmbiguousJobs, list_ambiguous

    actions = [name for name, on in (("--list", listed), ("--resubmit", resubmit), ("--abandon", abandon)) if on]
    actions += ["--adopt"] * bool(adopt)
    if len(actions) > 1:
        raise click.UsageError(f"{' and '.join(actions)} do not go together; decide one after the other")
    if not actions or listed:
        _print_ambiguous(
            [doubt for doubt in list_ambiguous(out) if not jobs or doubt.job_id in jobs], out, as_json=as_json
        )
        return
    if adopt and jobs:
        raise click.UsageError("--adopt names its jobs itself")
    with AmbiguousJobs(out) as ambiguous:
        decided = _decide(ambiguous, jobs, _parse_adopt(adopt), resubmit=resubmit)
        remaining = ambiguous.jobs
    _print_decision(decided, remaining, as_json=as_json)


def _decide(
    ambiguous: AmbiguousJobs, jobs: tuple[str, ...], request_ids: dict[str, str], *, resubmit: bool
) -> dict[str, int]:
    """How many jobs were decided in which way."""
    if request_ids:
        ambiguous.adopt(request_ids)
        return {"adopted": len(request_ids)}
    chosen = jobs or [doubt.job_id for doubt in ambiguous.jobs]
    if resubmit:
        ambiguous.resubmit(chosen)
        return {"resubmitted": len(chosen)}
    ambiguous.abandon(chosen)
    return {"abandoned": len(chosen)}


def _parse_adopt(adopt: tuple[str, ...]) -> dict[str, str]:
    """Request_ids by job, from JOB=REQUEST_ID; an id may hold an equals sign, a request_id cannot."""
    pairs: dict[str, str] = {}
    for text in adopt:
        job_id, equals, request_id = text.rpartition("=")
        if not (job_id and equals and request_id) or job_id in pairs:
            problem = "is given twice" if job_id in pairs else "is not JOB=REQUEST_ID"
            raise click.BadParameter(f"{text!r} {problem}", param_hint="'--adopt'")
        pairs[job_id] = request_id
    return pairs


def _print_ambiguous(ambiguous: list[AmbiguousJob], out: Path, *, as_json: bool) -> None:
    import msgspec

    from krea_batch.cli.ui.formatting import pluralize

    if as_json:
        fields = [
            {
                "id": doubt.job_id,
                "submitted_at": doubt.submitted_at,
                "why": doubt.reason,
                "request": msgspec.Raw(doubt.body),
            }
            for doubt in ambiguous
        ]
        click.echo(msgspec.json.encode({"ambiguous": fields}))
        return
    if not ambiguous:
        click.echo(f"no ambiguous job in {out}")
        return
    click.echo(f"{pluralize(len(ambiguous), 'ambiguous job')} in {out}: each may or may not have been paid")
    for doubt in ambiguous:
        prompt = " ".join(msgspec.json.decode(doubt.body)["prompt"].split())
        click.echo(
            f"  {doubt.job_id}  submitted {doubt.submitted_at}  {doubt.reason}\n      {_printable(prompt)[:100]}"
        )
    click.echo("decide by --adopt JOB=REQUEST_ID, --resubmit or --abandon")


def _print_decision(decided: dict[str, int], remaining: list[AmbiguousJob], *, as_json: bool) -> None:
    import orjson

    if as_json:
        click.echo(orjson.dumps(decided | {"ambiguous": len(remaining)}).decode())
        return
    (decision, count) = next(iter(decided.items()))
    click.echo(f"{count:,} {decision}, {len(remaining):,} still ambiguous")
    if decision != "abandoned":
        click.echo("run the same command as before to go on")


def _printable(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)
