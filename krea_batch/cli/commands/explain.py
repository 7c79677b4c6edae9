"""`krea-batch explain`: explains an error message or a symptom, offline."""

from __future__ import annotations

import click


@click.command()
@click.argument("topics", nargs=-1, metavar="[TOPIC…]")
def explain(topics: tuple[str, ...]) -> None:
    """Explain each TOPIC: a name from the last line of an error, or a whole message in quotes.

    Without a TOPIC, list the symptoms that have an explanation. Nothing is sent.
    """
    from krea_batch.cli.ui.explanations import find_topic, load_explanations
    from krea_batch.cli.ui.formatting import show

    explanations = load_explanations()
    if not topics:
        show(*_overview())
    for number, text in enumerate(topics):
        topic = text if text in explanations else find_topic(text)
        if topic is None:
            raise _unknown_topic(text)
        show(*([""] if number else []), *explanations[topic].lines())


def _overview() -> list[str]:
    """Return a line for each symptom."""
    from krea_batch.cli.ui.explanations import documentation_url, load_explanations

    symptoms = [each for each in load_explanations().values() if not each.examples]
    width = max(len(each.topic) for each in symptoms)
    return [
        *(f"{each.topic:<{width}}  {each.title}" for each in symptoms),
        "",
        "Messages about an input or an option have topics, too: the last line of the error names them.",
        f"Documentation: {documentation_url()}troubleshooting.html, {documentation_url()}reference/messages.html",
    ]


def _unknown_topic(text: str) -> click.UsageError:
    from difflib import get_close_matches

    from krea_batch.cli.ui.explanations import load_explanations

    close = get_close_matches(text, load_explanations(), 1)
    hint = f"Did you mean {close[0]!r}?" if close else "`krea-batch explain` lists symptoms."
    return click.UsageError(f"Nothing is known about {text!r}. {hint}")
