"""The headings under which the help of commands with many options lists them."""

from __future__ import annotations

import click

_OTHER = "Options"

HEADINGS: dict[str, tuple[str, ...]] = {
    _OTHER: (),  # options that no other heading names: those of one command
    "Job files": (
        *("prompt", "input_format", "prompt_column", "id_column", "column", "encoding", "no_header", "sheet"),
        *("keep_extra", "skip_comments", "lines", "whole_file", "separator", "skip_invalid"),
    ),
    "Prompts and selection": (
        *("prompt_syntax", "wildcards", "prompt_template", "set", "sweep", "seeds", "repeat", "dedupe", "limit"),
        *("sample", "sample_seed", "submit_changed"),
    ),
    "Images": ("name", "portable_names", "sink", "references", "no_thumbnails"),
    "Charges": (
        *("max_charges", "count_server_errors", "max_attempts", "ambiguous", "max_identical_failures"),
        *("confirm_above", "yes", "dry_run"),
    ),
    "Rates and polls": (
        *("rate", "max_in_flight", "poll_interval", "poll_rate", "shared_quota", "poll_lag_weight", "job_timeout"),
        *("webhook_listen", "webhook_url"),
    ),
    "Several processes": ("shared", "ledger", "batch", "drain"),
    "API": ("api_key_file", "gateway", "allow_networks", "simulate", "time_scale"),
    "Estimate": ("price", "latency", "latency_from", "gateway_limit"),
    "Output": ("quiet", "as_json", "verbose", "log_file", "log_format", "metrics_port"),
}
"""Parameters of click by heading, both in the order of the help."""


class GroupedCommand(click.Command):
    """A command whose help lists its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each heading that has some."""
        by_heading: dict[str, list[click.Option]] = {heading: [] for heading in HEADINGS}
        heading_of = {name: heading for heading, names in HEADINGS.items() for name in names}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option):
                by_heading[heading_of.get(param.name or "", _OTHER)].append(param)
        for heading, params in by_heading.items():
            order = HEADINGS[heading]
            ordered = sorted(params, key=lambda each: order.index(each.name or "")) if order else params
            if records := [record for each in ordered if (record := each.get_help_record(ctx))]:
                with formatter.section(heading):
                    formatter.write_dl(records)
