"""The diagram of the states shows each transition of the table once, and is up to date."""

from __future__ import annotations

from xml.etree import ElementTree

from docs.state_diagram import edges, svg
from krea_batch.jobs import State
from krea_batch.rules.lifecycle import TRANSITIONS
from tests.docs.pages import ROOT

SVG = "{http://www.w3.org/2000/svg}"


def test_it_shows_every_transition() -> None:
    """There is an arrow for each transition, and a box for each state."""
    diagram = ElementTree.fromstring(svg())  # noqa: S314 - our own text
    arrows = {(path.get("data-from"), path.get("data-to")) for path in diagram.iter(f"{SVG}path")} - {(None, None)}
    assert arrows == {(old.value, new.value) for old, new_states in TRANSITIONS.items() for new in new_states}
    assert {text.text for text in diagram.iter(f"{SVG}text")} >= {state.value for state in State}


def test_kinds() -> None:
    """An arrow has the kind of the action that needs least: a run before a resume, and that before a decision."""
    kinds = edges()
    assert kinds[State.ERRORED, State.PENDING] == "run"
    assert kinds[State.TIMED_OUT, State.ACCEPTED] == "resume"
    assert kinds[State.AMBIGUOUS, State.ACCEPTED] == "user"


def test_the_file_is_up_to_date() -> None:
    """`make generate` has written the diagram of the current table."""
    assert (ROOT / "docs" / "reference" / "states.svg").read_text("utf-8") == svg()
