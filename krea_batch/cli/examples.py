"""The name of a command comes in; lines that people may type go out, for the end of its `--help`."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "krea-batch run jobs.jsonl --out runs/cats --simulate",
        "krea-batch run jobs.jsonl --out runs/cats --rate 10/s --max-charges 100",
        "krea-batch run prompts.csv --out runs/grid --sweep creativity=raw,high --seeds 1..4",
        "zcat prompts.txt.gz | krea-batch run - --out runs/many --rate auto",
    ),
    "validate": (
        "krea-batch validate jobs.jsonl",
        "krea-batch validate table.tsv --prompt-column Caption --id-column Nr",
    ),
    "plan": (
        "krea-batch plan jobs.jsonl --rate 10/s --price 0.05",
        "krea-batch plan jobs.jsonl --like runs/cats --max-in-flight 100",
    ),
    "status": ("krea-batch status runs/cats", "krea-batch status runs/cats --json"),
    "watch": ("krea-batch watch runs/cats",),
    "view": ("krea-batch view runs/cats", "krea-batch view runs/cats --port 0 --no-open"),
    "report": ("krea-batch report runs/cats", "krea-batch report runs/cats --to cats.html --thumbnails 160"),
    "resolve": (
        "krea-batch resolve runs/cats --list",
        "krea-batch resolve runs/cats --resubmit fox",
        "krea-batch resolve runs/cats --abandon",
    ),
    "retry": ("krea-batch retry runs/cats --yes", "krea-batch retry runs/cats fox owl"),
    "verify": ("krea-batch verify runs/cats", "krea-batch verify runs/cats --repair"),
    "export": (
        "krea-batch export runs/cats --format imagefolder --to set --embed-metadata",
        "krea-batch export runs/cats --format zip --to cats.zip --ids-from ids.txt",
    ),
    "inspect": ("krea-batch inspect set/00001.png",),
    "schema": ("krea-batch schema > job.schema.json",),
    "simulate": (
        "krea-batch simulate",
        "krea-batch simulate --rate-limit token-bucket:20/s --fault submit-500=0.05 --latency lognormal:12,0.3",
    ),
    "bench": (
        "krea-batch bench --rates 50/s,200/s --compare",
        "krea-batch bench --gateway https://gateway.pixazo.ai --rates 2/s --jobs 20 --price 0.05",
    ),
    "dashboard": ("krea-batch dashboard > krea-batch.json",),
    "init": ("krea-batch init",),
    "doctor": ("krea-batch doctor --out runs",),
    "completion": ('eval "$(krea-batch completion bash)"',),
}


def epilog(name: str) -> str:
    """What stands at the end of a command's help. The first line of a paragraph keeps click from wrapping it."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[name])
