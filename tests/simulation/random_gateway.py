"""A gateway that accepts POSTs with random outcomes, charges for them, and checks the requests of the engine.

Its statuses, callbacks and images are in `random_statuses`, `random_callbacks` and `random_cdn`.

The outcome of a request depends on the seed, on its subject and on the number of the attempt, not on the order of
requests. The strings in the keys are part of the seed: a change gives every seed different outcomes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import aiohttp

from krea_batch.gateway import wire
from krea_batch.gateway.client import LATE_ANSWER_S
from tests.simulation import answers
from tests.simulation.answers import CANDIDATE, CLEAR, CONFLICT, NOTHING, refusal
from tests.simulation.client_process import CURRENT_PROCESS, ClientProcess
from tests.simulation.ledger_reader import LedgerFileReader
from tests.simulation.network import Connection, Reply, Request, broken
from tests.simulation.outages import Outage, current_outage
from tests.simulation.random_callbacks import RandomCallbacks
from tests.simulation.random_cdn import RandomCdn
from tests.simulation.random_statuses import RandomStatuses
from tests.simulation.weighted_choice import weighted_choice

REQUEST_TIMEOUT_S = 60.0  # the default of the engine
GATEWAY = "https://gateway.pixazo.ai/"


SUBMIT_OUTCOMES: list[tuple[int, Any]] = [
    (55, "accept"),
    (4, "accept, but the response is lost"),
    (10, "accept, but the response is damaged"),
    (3, "accept, but the response is late"),
    (1, "accept, but the response has another job's request_id"),
    (1, "accept, but a time-out page comes first"),
    (4, "cut before it was queued"),
    (1, "a page that says nothing"),
    (6, refusal(429, "slow down", "3")),
    (2, refusal(429, "slow down")),
    (2, refusal(403, "quota", "20")),
    (6, refusal(500, "internal")),
    (3, refusal(503, "unavailable", "5")),
    (5, "no connection"),
    (1, "no connection in time"),
    (2, refusal(422, "bad")),
    (1, refusal(402, "no money")),
]
FEW_FAULTS: list[tuple[int, Any]] = [(98, "accept"), (2, refusal(500, "internal"))]


class Post:
    """A POST: its prompt, what becomes of it, and the request_id that it is charged under, "" if it is not.

    `process` has sent it. `finds` says what a client can find in the answer, and `is_read` whether it has read it.
    `other` is the request_id of another POST that the answer may name as well.
    """

    def __init__(
        self, process: ClientProcess, prompt: str, random: Random, outcome: Any, outage: Outage | None
    ) -> None:
        self.process = process
        self.prompt = prompt
        self.random = random
        self.outcome = outcome
        self.outage = outage
        self.request_id = ""
        self.other = ""
        self.finds = NOTHING
        self.is_read = False


class RandomGateway:
    """The server of a simulation. `violations` lists requests that must not happen.

    `clock` returns the seconds since 1970. `posts` and the outages are of one process, or of several at the same
    time; `start_process` clears them.
    """

    def __init__(self, seed: int, ledger: LedgerFileReader, clock: Callable[[], float], *, few_faults: bool) -> None:
        self.seed = seed
        self.clock = clock
        self.few_faults = few_faults
        self.cdn = RandomCdn(self)
        self.statuses = RandomStatuses(self)
        self.callbacks = RandomCallbacks(self)
        self.charged: dict[str, str] = {}  # prompts by request_id
        self.violations: list[str] = []
        self.attempts: Counter[str] = Counter()
        self.no_faults = False
        self.ledger = ledger
        self.named: set[str] = set()  # request_ids in callbacks and damaged answers, which may be polled
        self._posts: dict[Request, Post] = {}  # those that are being sent
        self.start_process([], [])

    def start_process(self, outages: list[Outage], cdn_outages: list[Outage]) -> None:
        """Forget what belongs to the last process. The outages are those of the next one."""
        self._process = ClientProcess()
        self.outages = outages
        self.cdn.outages = cdn_outages
        self.posts: list[Post] = []

    @property
    def process(self) -> ClientProcess:
        """The process that sends a request just now."""
        return CURRENT_PROCESS.get() or self._process

    def random_for(self, *key: str) -> Random:
        """Return the random generator of the next attempt on a subject."""
        name = "/".join(key)
        self.attempts[name] += 1
        return Random(f"{self.seed}/{name}/{self.attempts[name]}")

    # ---- the server of `network` -------------------------------------------------------------------------

    async def connect(self, request: Request) -> None:
        """Open a connection. Raises what aiohttp raises if that fails, and CancelledError in a crashed process."""
        if self.process.has_crashed:
            raise asyncio.CancelledError
        has_key = wire.KEY_HEADER in request.headers
        if has_key != request.url.startswith(GATEWAY):
            self.violations.append(f"{request.url} was requested {'with' if has_key else 'without'} the key")
        if request.method == "POST":
            await self._connect_post(request)

    def receive(self, request: Request, connection: Connection) -> list[Reply]:
        """Return what the server sends on this connection because of a request."""
        if self.process.has_crashed:
            raise asyncio.CancelledError
        if connection.strange:
            self.violations.append(f"a connection was used again that had brought {connection.strange}")
        if request.method == "POST":
            return self._accept_post(request, self._posts.pop(request))
        if request.url.startswith(GATEWAY):
            return self._answer_poll(request, connection)
        return self.cdn.answer(request)

    def on_read(self, request: Request, reply: Reply) -> None:
        """Learn that the client has read a reply to its end, or up to where it broke off."""
        if isinstance(request.subject, Post):
            self._on_answer_read(request.subject)
        elif reply.names and reply.names == request.subject:
            self.process.proven.add(request.subject)

    def on_given_up(self, request: Request, reply: Reply, *, has_begun: bool) -> None:
        """Learn that the client no longer waits for a reply, of which it has read a part if it `has_begun`."""
        post = request.subject
        if not isinstance(post, Post):
            return
        if has_begun:
            post.finds = CANDIDATE if post.finds == CLEAR else post.finds
            self._on_answer_read(post)
        if self.process.has_crashed or self.process.gives_up_early:
            post.is_read = False  # A client that is cancelled does not look at what it has read.
            return
        now_s = asyncio.get_running_loop().time()
        waited_s = now_s - request.sent_s
        if reply.ends_s < now_s - 0.001:
            self.violations.append(f"the answer to a POST of {post.prompt} had arrived, and was not read")
        elif waited_s < REQUEST_TIMEOUT_S + LATE_ANSWER_S - 0.001:
            self.violations.append(f"the answer to a POST of {post.prompt} was given up after {waited_s:.3f} s")

    def _on_answer_read(self, post: Post) -> None:
        post.is_read = True
        if post.finds in (CANDIDATE, CONFLICT):
            self.named.add(post.request_id)
        if post.finds == CONFLICT:  # The client asks the gateway for both, which must know one and deny the other.
            self.named.add(post.other)

    # ---- POSTs -------------------------------------------------------------------------------------------

    async def _connect_post(self, request: Request) -> None:
        prompt = request.body.split(b'"')[3].decode()
        random = self.random_for("post", prompt)
        table = FEW_FAULTS if self.few_faults else SUBMIT_OUTCOMES
        outcome = "accept" if self.no_faults else weighted_choice(random, table)
        outage = current_outage(self.outages)
        self._posts[request] = request.subject = Post(self.process, prompt, random, outcome, outage)
        if outage and outage.kind == "not sent":
            outage.prompts_s.append((prompt, asyncio.get_running_loop().time()))
            await asyncio.sleep(0.05)
            outcome = "no connection"
        if outcome == "no connection in time":
            await asyncio.sleep(2 * REQUEST_TIMEOUT_S)
        if outcome == "no connection":
            raise aiohttp.ClientConnectorError(None, OSError(111, "Connection refused"))  # type: ignore[arg-type]

    def _accept_post(self, request: Request, post: Post) -> list[Reply]:
        """Check a POST, queue and charge its job or not, and answer."""
        self._check_intent(post)
        now_s = asyncio.get_running_loop().time()
        self.process.submit_times_s.append(now_s)
        self.posts.append(post)
        outage = post.outage
        is_accepted = isinstance(post.outcome, str) and post.outcome.startswith("accept")
        if outage:
            outage.prompts_s.append((post.prompt, now_s))
            is_accepted = outage.may_charge(post.random)
        if is_accepted:
            post.request_id = answers.request_id_of(len(self.charged))
            self.charged[post.request_id] = post.prompt  # whatever happens to the response
            if callback := request.headers.get(wire.WEBHOOK_HEADER):
                self.callbacks.schedule(post.request_id, callback)
        if outage:
            return [outage.reply(request)]
        reply = self._post_reply(request, post)
        if post.outcome == "accept, but a time-out page comes first":  # and the connection is not used again
            post.finds = NOTHING
            return [Reply(408, b"<html>408 Request Time-out</html>"), reply]
        return [reply]

    def _check_intent(self, post: Post) -> None:
        sql = (
            "SELECT state, result FROM jobs JOIN submissions USING (job_no) WHERE job_id = ?"
            " ORDER BY submission_no DESC LIMIT 1"
        )
        if self.ledger.query(sql, post.prompt) != [("submitting", None)]:
            self.violations.append(f"a POST of {post.prompt} without a recorded intent")

    def _post_reply(self, request: Request, post: Post) -> Reply:
        delay_s = post.random.choice([0.01, 0.05, 0.1] if self.few_faults else [0.01, 0.1, 0.5, 2.0, 20.0])
        outcome = post.outcome
        if isinstance(outcome, dict):
            return answers.refusal_reply(request, delay_s, **outcome)
        if outcome == "a page that says nothing":
            return Reply(502, b"<html>Bad Gateway</html>", delay_s=delay_s, to=request)
        if outcome in ("cut before it was queued", "accept, but the response is lost"):
            return broken(aiohttp.ServerDisconnectedError(), delay_s)
        if outcome == "accept, but the response is late":
            delay_s = post.random.choice([59.0, 61.0, 100.0, 235.0, 236.0, 300.0])
        answer = self._post_answer(post)
        post.finds = answer.finds
        return Reply(answer.status, *answer.parts, delay_s=delay_s, to=request)

    def _post_answer(self, post: Post) -> answers.PostAnswer:
        if post.outcome == "accept, but the response is damaged":
            damage = post.random.choice(answers.DAMAGES)
            post.other = self._other_request_id(post)
            return damage(post.request_id, post.other, post.random)
        if post.outcome == "accept, but the response has another job's request_id":
            recorded = self.ledger.query("SELECT min(request_id) FROM submissions")[0][0]
            body = answers.encode(answers.accepted(recorded or post.request_id))
            return answers.PostAnswer(202, (body,), NOTHING if recorded else CLEAR)
        body = answers.encode(answers.accepted(post.request_id))
        if self.few_faults or post.random.random() < 0.9:
            return answers.PostAnswer(202, (body,))
        return answers.PostAnswer(202, (body[:100], post.random.choice([0.01, 1.0, 5.0]), body[100:]))

    def _other_request_id(self, post: Post) -> str:
        """Return the request_id of another POST, often a recent one, or one that does not exist."""
        others = [request_id for request_id, prompt in self.charged.items() if prompt != post.prompt]
        if not others:
            return answers.request_id_of(999_999)
        random = Random(post.request_id)
        return others[-1] if random.random() < 0.5 else random.choice(others)

    # ---- polls -------------------------------------------------------------------------------------------

    def _answer_poll(self, request: Request, connection: Connection) -> list[Reply]:
        request_id = request.subject = request.url.rpartition("/")[2]
        sql = "SELECT 1 FROM submissions WHERE request_id = ? AND result = 'accepted'"
        if request_id not in self.named and not self.ledger.query(sql, request_id):
            self.violations.append(f"a poll of {request_id}, which is not recorded")
        self.process.polled[request_id] += 1
        if outage := current_outage(self.outages):
            return [outage.reply(request)]
        return self.statuses.answer(request, connection, request_id)
