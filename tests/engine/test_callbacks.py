"""Test callbacks in virtual time: on time, missing, duplicated, late and forged ones."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import pytest

from krea_batch import Engine, Job, SettingsError, State, Webhook
from krea_batch.gateway.callbacks import CallbackRouter
from krea_batch.gateway.wire import CallbackPayload
from krea_batch.rules.verdicts import Ambiguous, PostVerdict
from krea_batch.testing import run_virtual
from tests.asgi_client import call_asgi
from tests.callback_gateway import CallbackGateway
from tests.engine_fixtures import ledger_states, query_ledger

OPEN_JOBS = 20
CALLBACK_URL = "https://my.host/krea"

pytestmark = pytest.mark.slow


async def run_with_callbacks(out: Path, gateway: CallbackGateway, count: int, **options: Any) -> Engine:
    engine_options: dict[str, Any] = {"webhook": Webhook(CALLBACK_URL), "rate": "20/s"} | options
    engine = Engine(out, gateway_client=gateway, random=Random(0), **engine_options)
    gateway.app = engine.callbacks_app() if engine_options["webhook"] else None
    async with engine:
        await engine.run([Job(prompt=f"image {n}", id=f"job-{n}") for n in range(count)])
    assert set(ledger_states(out).values()) == {"succeeded"}
    assert len(gateway.charged) == count
    return engine


class TestCallbackDelivery:
    def test_few_polls_and_no_lag(self, tmp_path: Path) -> None:
        """With reliable callbacks there are at most 1.1 polls per job, and an end is found within 0.3 s."""
        gateway = CallbackGateway()
        run_virtual(run_with_callbacks(tmp_path, gateway, 400))
        assert gateway.polls_per_job <= 1.1
        assert gateway.lags_s[-1] <= 0.3
        assert set(gateway.callback_statuses) == {204}

    def test_doubled_and_late_ones(self, tmp_path: Path) -> None:
        """Callbacks that arrive twice, or late and out of order, cause no second poll of a finished job."""
        gateway = CallbackGateway(callback_delays_s=(0.05, 0.05, 9.0))
        run_virtual(run_with_callbacks(tmp_path, gateway, 200))
        assert gateway.polls_per_job <= 1.2

    def test_some_are_lost(self, tmp_path: Path) -> None:
        """Jobs whose callbacks are lost are polled all the same."""
        gateway = CallbackGateway(callback_share=0.93)
        run_virtual(run_with_callbacks(tmp_path, gateway, 300))

    def test_callbacks_stop_arriving(self, tmp_path: Path) -> None:
        """If callbacks stop arriving, jobs are polled as without callbacks after a few jobs."""
        gateway = CallbackGateway(callback_limit=150)
        run_virtual(run_with_callbacks(tmp_path, gateway, 600, rate="5/s"))
        late = [
            gateway.detected_s[request_id] - gateway.done_at_s[request_id]
            for request_id in list(gateway.charged)[300:]
        ]
        assert sum(late) / len(late) <= 5.0

    def test_no_callback_arrives(self, tmp_path: Path) -> None:
        """If no callback arrives, there are as many polls and as much lag as without callbacks."""
        silent, without = CallbackGateway(callback_share=0.0), CallbackGateway()
        run_virtual(run_with_callbacks(tmp_path / "a", silent, 200))
        run_virtual(run_with_callbacks(tmp_path / "b", without, 200, webhook=None))
        polls = [[len(times_s) for times_s in gw.poll_times_s.values()] for gw in (silent, without)]
        assert polls[0] == polls[1]
        assert silent.lags_s == pytest.approx(without.lags_s, abs=0.02)
        assert set(without.callback_paths.values()) == {""}

    def test_the_schedule_learns_from_callbacks(self, tmp_path: Path) -> None:
        """The schedule learns latencies from callbacks, and uses them once callbacks stop."""
        gateway = CallbackGateway(callback_limit=200)
        run_virtual(run_with_callbacks(tmp_path, gateway, 400, rate="5/s"))
        after = list(gateway.charged)[300:]
        assert sum(len(gateway.poll_times_s[request_id]) for request_id in after) / len(after) <= 2.0

    def test_a_job_of_an_earlier_run(self, tmp_path: Path) -> None:
        """Callback URLs outlive a restart: a callback expedites the poll of a job of an earlier run."""
        gateway = CallbackGateway(callback_share=0.0)

        async def main() -> None:
            first = Engine(tmp_path, gateway_client=gateway, webhook=Webhook(CALLBACK_URL), random=Random(0))
            await first.start()
            handle = await first.submit(Job(prompt="a cat", id="cat"))
            await first.aclose(detach=True)
            async with Engine(
                tmp_path, gateway_client=gateway, webhook=Webhook(CALLBACK_URL), random=Random(0)
            ) as second:
                gateway.app = second.callbacks_app()
                request_id = handle.request_id
                assert request_id
                await asyncio.sleep(gateway.done_at_s[request_id] - asyncio.get_running_loop().time() + 0.01)
                assert await gateway.send_callback(request_id) == 204
                found = await second.get("cat")
                assert found
                await found
                assert gateway.lags_s[-1] <= 0.3

        run_virtual(main())


class TestForgedCallbacks:
    def test_they_change_nothing(self, tmp_path: Path) -> None:
        """Guessed tokens, those of another job and of another run are answered 404 and cause no poll."""
        gateway = CallbackGateway(callback_share=0.0)

        async def main() -> None:
            engine = Engine(tmp_path, gateway_client=gateway, webhook=Webhook(CALLBACK_URL), random=Random(0))
            app = gateway.app = engine.callbacks_app()
            async with engine:
                first, second = [(await engine.submit(Job(prompt=f"{n}"))).request_id for n in range(2)]
                assert first and second
                _, run, n, token = gateway.callback_paths[first].removeprefix(CALLBACK_URL).split("/")
                other = gateway.callback_paths[second].rpartition("/")[2]
                foreign = CallbackRouter(b"another secret", lambda *_: None).url_of(int(n)).split("/")
                forged = [
                    "", "/", f"/{run}", f"/{run}/{n}", f"/{run}/{n}/", f"/{run}/{n}/{other}",
                    f"/{run}/{n}/{token[:-1]}", f"/{run}/0{n}x/{token}", f"/{run}/{'9' * 30}/{token}",
                    f"/{'0' * 32}/{n}/{token}", f"/{run}/{n}/{token.upper()}x", "/".join(["", *foreign[1:]]),
                    f"/{run}/-{n}/{token}", f"/{run}/²/{token}", "/../../etc/passwd",
                ]  # fmt: skip
                for path in forged:
                    assert await gateway.send_callback(first, path) == 404, path
                await asyncio.sleep(0.5)
                assert not gateway.poll_times_s
                assert await call_asgi(app, gateway.callback_paths[first], b"x" * 70_000, pieces=9) == 413
                assert await call_asgi(app, gateway.callback_paths[first], method="GET") == 405
                assert not gateway.poll_times_s
            assert await gateway.send_callback(first) == 503

        run_virtual(main())

    def test_the_content_of_a_callback_is_not_trusted(self, tmp_path: Path) -> None:
        """With a valid URL, a foreign request_id or media URL causes nothing but a poll."""
        gateway = CallbackGateway(callback_share=0.0)

        async def main() -> None:
            engine = Engine(tmp_path, gateway_client=gateway, webhook=Webhook(CALLBACK_URL), random=Random(0))
            gateway.app = engine.callbacks_app()
            async with engine:
                request_id = (await engine.submit(Job(prompt="a cat"))).request_id
                assert request_id
                url = gateway.callback_paths[request_id]
                evil = {"media_url": ["https://evil.example/1.png"], "media_type": "image/png"}
                assert await gateway.send_callback("another-request-id", url, output=evil) == 204
                await asyncio.sleep(0.5)
                assert not gateway.poll_times_s
                for _ in range(50):
                    assert await gateway.send_callback(request_id, output=evil) == 204
                await asyncio.sleep(0.5)
                assert len(gateway.poll_times_s[request_id]) == 1
                assert await gateway.send_callback(request_id, status="PROCESSING") == 204
                assert await call_asgi(engine.callbacks_app(), url, b"\xff not JSON") == 204

        run_virtual(main())
        assert all("evil" not in url for url, _ in gateway.downloads)
        assert set(ledger_states(tmp_path).values()) == {"succeeded"}


class TestAmbiguousJobs:
    @pytest.mark.parametrize("ambiguous", ["keep", "resubmit"])
    def test_a_callback_during_a_pending_post(self, tmp_path: Path, ambiguous: str) -> None:
        """A POST whose answer is lost is not ambiguous if a callback arrived for it and a poll confirms it."""
        gateway = CallbackGateway(callback_share=0.0)
        gateway.lose_responses = True

        async def main() -> None:
            engine = Engine(
                tmp_path, gateway_client=gateway, webhook=Webhook(CALLBACK_URL), random=Random(0), ambiguous=ambiguous
            )
            gateway.app = engine.callbacks_app()
            posted = gateway.submit

            async def submit(body: bytes, *, callback: str = "", **_: object) -> PostVerdict:
                verdict = await posted(body, callback=callback)
                (request_id,) = gateway.charged
                await asyncio.sleep(20)  # There is no answer, but the image is generated and the callback is sent.
                assert await gateway.send_callback(request_id) == 204
                return verdict

            gateway.submit = submit  # type: ignore[method-assign]
            async with engine:
                outcome = await engine.generate(Job(prompt="a cat", id="cat"))
                assert outcome.succeeded

        run_virtual(main())
        assert len(gateway.charged) == 1

    def test_a_callback_for_an_ambiguous_job(self, tmp_path: Path) -> None:
        """A callback gives an ambiguous job its request_id; the job succeeds and is charged once."""
        gateway = CallbackGateway()
        gateway.lose_responses = True

        async def main() -> None:
            engine = Engine(tmp_path, gateway_client=gateway, webhook=Webhook(CALLBACK_URL), random=Random(0))
            gateway.app = engine.callbacks_app()
            async with engine:
                handle = await engine.submit(Job(prompt="a cat", id="cat"))
                assert handle.status is State.AMBIGUOUS
                await asyncio.sleep(16)
                adopted = await engine.get("cat")
                assert adopted
                assert (await adopted).succeeded
                assert engine.stats().ended_by_state[State.AMBIGUOUS] == 0
                assert (await engine.charges()).unknown == 0

        run_virtual(main())
        assert query_ledger(tmp_path, "SELECT state, request_id FROM jobs") == [("succeeded", *gateway.charged)]
        assert len(gateway.charged) == 1

    def test_a_callback_while_jobs_are_resumed(self, tmp_path: Path) -> None:
        """A callback for an ambiguous job of an earlier run may arrive before all open jobs were read."""
        gateway = CallbackGateway(callback_share=0.0)
        accept = gateway.submit

        async def lose_response_of_cat(body: bytes, *, callback: str = "", **_: object) -> PostVerdict:
            verdict = await accept(body, callback=callback)
            return Ambiguous("cut") if b"a cat" in body else verdict

        async def main() -> None:
            first = Engine(
                tmp_path, gateway_client=gateway, webhook=Webhook(CALLBACK_URL), random=Random(0), max_in_flight=1
            )
            gateway.submit = lose_response_of_cat  # type: ignore[method-assign]
            await first.start()
            for n in range(OPEN_JOBS):
                await first.enqueue(Job(prompt=f"a dog {n}", id=f"dog-{n}"), tenant="dogs")
            assert (await first.submit(Job(prompt="a cat", id="cat"), tenant="cats")).status is State.AMBIGUOUS
            await first.aclose(detach=True)
            [cat] = [request_id for request_id, prompt in gateway.charged.items() if prompt == "a cat"]
            await asyncio.sleep(20)
            second = Engine(tmp_path, gateway_client=gateway, webhook=Webhook(CALLBACK_URL), random=Random(0))
            gateway.app = second.callbacks_app()
            starting = asyncio.create_task(second.start())
            while await gateway.send_callback(cat) != 204:
                await asyncio.sleep(0)
            await starting
            await second.aclose()

        run_virtual(main())
        assert len(gateway.charged) == OPEN_JOBS + 1
        assert set(ledger_states(tmp_path).values()) == {"succeeded"}

    def test_a_callback_with_an_unknown_request_id(self, tmp_path: Path) -> None:
        """A request_id that is unknown to the gateway, or of another job, is not adopted."""
        gateway = CallbackGateway(callback_share=0.0)

        async def main() -> None:
            engine = Engine(tmp_path, gateway_client=gateway, webhook=Webhook(CALLBACK_URL), random=Random(0))
            gateway.app = engine.callbacks_app()
            async with engine:
                other = (await engine.submit(Job(prompt="a dog", id="dog"))).request_id
                gateway.lose_responses = True
                await engine.submit(Job(prompt="a cat", id="cat"))
                url = gateway.callback_paths[list(gateway.charged)[1]]
                assert other
                for request_id in ("unknown-request-id", other, "../../secrets"):
                    assert await gateway.send_callback(request_id, url) == 204
                    await asyncio.sleep(30)
                assert ledger_states(tmp_path)["cat"] == "ambiguous"

        run_virtual(main())
        assert ledger_states(tmp_path) == {"dog": "succeeded", "cat": "ambiguous"}


@pytest.mark.parametrize(
    ("url", "listen"),
    [
        ("", ""), ("", "0.0.0.0:8080"), ("http://my.host/krea", ""), ("ftp://my.host", ""), ("https://", ""),
        ("https://a@my.host/", ""), ("https://my.host/?x=1", ""), (CALLBACK_URL, "8080"), (CALLBACK_URL, "host:"),
        (CALLBACK_URL, "h:99999"),
    ],
)  # fmt: skip
def test_a_wrong_webhook(url: str, listen: str) -> None:
    """A webhook URL that cannot be reached, or would reveal the tokens, is a SettingsError."""
    with pytest.raises(SettingsError, match="webhook"):
        Webhook(url, listen)


def test_callbacks_app_without_a_callback_url(tmp_path: Path) -> None:
    """Without a callback URL there is no app to mount: SettingsError."""
    engine = Engine(tmp_path, gateway_client=CallbackGateway())
    for method in (engine.callbacks_app, engine.callbacks_handler):
        with pytest.raises(SettingsError, match="webhook"):
            method()


def test_callback_urls() -> None:
    """A callback URL belongs to one job; with another secret the URLs are different."""
    received: list[tuple[int, CallbackPayload]] = []
    router = CallbackRouter(b"secret", lambda job_no, payload: received.append((job_no, payload)))
    router.base_url = CALLBACK_URL
    assert router.receive(router.url_of(7), b'{"request_id": "r-7", "status": "FAILED"}') == 204
    assert received == [(7, CallbackPayload("r-7", ended=True))]
    assert CallbackRouter(b"other", lambda *_: None).receive(router.url_of(7), b"") == 404
    assert len({router.url_of(n) for n in range(1000)}) == 1000
