"""Transitions of many jobs come in; those of one kind go to SQLite together, in one statement.

Newcomers: a group brings a job one step further, and no more than one: whoever waits for a record goes on when it is
durable. Only what is noted may be followed by another step of its job in the same group, and so it comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from krea_batch.ledger.store import Store

_TOGETHER: dict[Callable[..., Any], Callable[[Store, Sequence[Any]], Sequence[Any]]] = {
    Store.finish: Store.finish_all,
    Store.store: Store.store_all,
    Store.accept: Store.accept_all,
    Store.intend: Store.intend_all,
}


class Call(NamedTuple):
    """One transition, still to be carried out."""

    transition: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def carry_out(self, store: Store) -> Any:
        return self.transition(store, *self.args, **self.kwargs)


def carry_out(calls: Sequence[Call], store: Store) -> list[Any]:
    """Carry out all of them. Gives their answers, in the order of `calls`; raises what the first to fail raises."""
    answers: list[Any] = [None] * len(calls)
    others: list[int] = []
    places: dict[Callable[..., Any], list[int]] = {transition: [] for transition in _TOGETHER}
    for place, call in enumerate(calls):
        places.get(call.transition, others).append(place)
    for transition, alike in places.items():
        if alike:
            found = _TOGETHER[transition](store, [calls[place].args for place in alike])
            for place, answer in zip(alike, found, strict=True):
                answers[place] = answer
    for place in others:
        answers[place] = calls[place].carry_out(store)
    return answers
