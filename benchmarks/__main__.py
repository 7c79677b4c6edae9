"""Run the benchmarks one after the other, and write their output into benchmarks/README.md.

    python -m benchmarks                     all of them; about an hour
    python -m benchmarks polls in_flight     these; the other sections stay as they are
    python -m benchmarks --repeat 1          each case once

The output of a benchmark replaces the text between its two markers in the README; other text is not changed. The
table of goals at the top is collected from all sections. A benchmark that needs a package which is not installed says
so, and its section stays as it is. The comparison is also written into the README of the project.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.report import GOAL, NOT_MEASURED

README = Path(__file__).with_name("README.md")
PROJECT_README = README.parents[1] / "README.md"
BENCHMARKS = (
    "validate",
    "polls",
    "throughput",
    "limiters",
    "run_starts",
    "overhead",
    "in_flight",
    "resume",
    "scale",
    "callbacks",
    "tenants",
    "service",
    "forecast",
    "gallery",
    "ray_rows",
    "comparison",
)
ALSO_IN_PROJECT_README = ("comparison",)
REPEATABLE = frozenset({"validate", "throughput", "run_starts", "overhead", "resume", "service"})
REPORTED_LIBRARIES = ("aiohttp", "anyio", "uvloop", "msgspec")


def run(name: str, repeat: int | None) -> tuple[str, list[list[str]]]:
    """Run a benchmark; return its output as Markdown, and its goals."""
    options = ["--repeat", str(repeat)] if repeat and name in REPEATABLE else []
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    lines = process.stdout.splitlines()
    goals = [line.split("\t")[1:] for line in lines if line.startswith(f"{GOAL}\t")]
    output = "\n".join(line for line in lines if not line.startswith(f"{GOAL}\t"))
    shown = output if output.startswith("|") else f"```text\n{output}\n```"
    command_line = " ".join(["python", *command[1:]])
    rows = "\n".join(f"| {' | '.join(goal)} |" for goal in goals)
    goals_section = f"\n\n| goal | | reached | |\n|---|---|---|---|\n{rows}" if goals else ""
    return f"`{command_line}`, {datetime.now(UTC):%Y-%m-%d}:\n\n{shown}{goals_section}", goals


def replace_section(text: str, name: str, content: str) -> str:
    """Return the README with this content between the markers of that name."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise SystemExit(f"there is no {begin} … {end} in the README")
    return f"{before}{begin}\n{content}\n{end}{after}"


def goal_table(text: str) -> str:
    """Return a table of the goals of all sections."""
    rows = re.findall(r"^\| .+ \| (?:yes|no) \|$", text, re.MULTILINE)
    return "\n".join(["| what | goal | reached | met |", "|---|---|---|---|", *dict.fromkeys(rows)])


def first_table(content: str) -> str:
    """Return the first table of a section."""
    lines = content.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    end = next((number for number in range(start, len(lines)) if not lines[number].startswith("|")), len(lines))
    return "\n".join(lines[start:end])


def machine() -> str:
    """Return a description of this machine."""
    model = re.search(r"model name\s*: (.+)", _read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+)", _read("/proc/meminfo"))
    parts = [
        f"{os.cpu_count()} shared cores" + (f" ({model[1]})" if model else ""),
        f"{int(memory[1]) >> 20} GiB" if memory else "",
        f"{platform.system()} {platform.release().split('-')[0]}",
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in REPORTED_LIBRARIES),
        f"SQLite {sqlite3.sqlite_version}",
    ]
    return "Machine: " + ", ".join(part for part in parts if part) + "."


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--repeat", type=int)
    parser.add_argument("--readme", type=Path, default=README)
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {unknown.pop()!r}; there are {', '.join(BENCHMARKS)}")
    for name in options.names or BENCHMARKS:
        print(f"{name} …", flush=True)
        content, goals = run(name, options.repeat)
        if NOT_MEASURED in content:
            print(f"  {content.splitlines()[-2]}", flush=True)
            continue
        for label, bound, reached, met in goals:
            print(f"  {label}: {reached} ({bound}: {met})", flush=True)
        text = replace_section(options.readme.read_text("utf-8"), name, content)
        text = replace_section(text, "machine", machine())
        text = replace_section(text, "goals", goal_table(text.partition("<!-- /goals -->")[2]))
        options.readme.write_text(text, "utf-8")
        if name in ALSO_IN_PROJECT_README and options.readme == README:
            project_text = replace_section(PROJECT_README.read_text("utf-8"), name, first_table(content))
            PROJECT_README.write_text(project_text, "utf-8")


if __name__ == "__main__":
    main()
