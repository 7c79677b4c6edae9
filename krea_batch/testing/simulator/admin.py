"""Questions and wishes of the judge come in at /_admin/; the books, and a changed simulator, go out.

GET  /_admin/totals                     counts, cheap at any time
GET  /_admin/ledger                     the totals and every POST received
GET  /_admin/settings                   as they are now
POST /_admin/settings {"faults": {…}}   change those that are named, from now on
POST /_admin/balance  {"add": 100}      top up, or {"set": 5}, or {"set": null} for one without end
POST /_admin/reset    {}                forget every job and count
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from krea_batch.testing.simulator.cdn import need_pillow
from krea_batch.testing.simulator.responses import bad_request, encoded
from krea_batch.testing.simulator.settings import SimulatorError, SimulatorSettings
from krea_batch.testing.simulator.state import State
from krea_batch.testing.simulator.webhooks import Webhooks

FIXED = ("host", "port", "cdn_port", "state_file")  # settings that cannot change while it runs
_NOT_READ = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Balance(msgspec.Struct, forbid_unknown_fields=True):
    add: int = 0
    set: Annotated[int, msgspec.Meta(ge=0)] | msgspec.UnsetType | None = msgspec.UNSET


class Admin:
    """The judge's address."""

    def __init__(self, state: State, webhooks: Webhooks) -> None:
        self.state = state
        self.webhooks = webhooks

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/_admin/totals", self.totals),
            web.get("/_admin/ledger", self.ledger),
            web.get("/_admin/settings", self.settings),
            web.post("/_admin/settings", self.change),
            web.post("/_admin/balance", self.add_balance),
            web.post("/_admin/reset", self.reset),
        ]

    async def totals(self, request: web.Request) -> web.Response:
        return _told(self.state.books.totals(self.state.now()))

    async def ledger(self, request: web.Request) -> web.Response:
        return _told(self.state.books.ledger(self.state.now()))

    async def settings(self, request: web.Request) -> web.Response:
        return _told(msgspec.to_builtins(self.state.settings))

    async def change(self, request: web.Request) -> web.Response:
        try:
            named = msgspec.json.decode(await request.read(), type=dict[str, Any])
            settings = _changed(self.state.settings, named)
        except (SimulatorError, *_NOT_READ) as problem:
            return bad_request(str(problem))
        self.state.configure(settings)
        return await self.settings(request)

    async def add_balance(self, request: web.Request) -> web.Response:
        try:
            wish = msgspec.json.decode(await request.read(), type=_Balance)
        except _NOT_READ as problem:
            return bad_request(f'{problem}; write {{"add": 100}}')
        books = self.state.books
        if wish.set is not msgspec.UNSET:
            books.balance = wish.set
        if books.balance is not None:
            books.balance += wish.add
        return await self.totals(request)

    async def reset(self, request: web.Request) -> web.Response:
        await self.webhooks.forget()
        self.state.reset()
        return await self.totals(request)


def _changed(settings: SimulatorSettings, named: dict[str, Any]) -> SimulatorSettings:
    if fixed := [name for name in FIXED if name in named]:
        raise SimulatorError("it cannot change while the simulator runs", fixed[0])
    changed = msgspec.convert(msgspec.to_builtins(settings) | named, SimulatorSettings)
    if changed.draws:
        need_pillow()
    return changed


def _told(fields: dict[str, Any]) -> web.Response:
    return encoded(200, msgspec.json.encode(fields))  # and not orjson: a seed may have any number of digits
