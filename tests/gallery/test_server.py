"""Tests of the server of `krea-batch view` with plain HTTP, and of its start and stop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from playwright.sync_api import expect

from krea_batch.gallery.server import GalleryApp
from krea_batch.gallery.shown_run import ShownRun
from krea_batch.jobs import State
from krea_batch.storage.run_dir import THUMBNAILS
from tests.engine_fixtures import ledger_states
from tests.gallery.conftest import JOB_NUMBERS, MIXED_JOBS
from tests.gallery.gallery_fixtures import CONNECTION_ERRORS, OpenPage, SeedJob, StartView, make_run
from tests.processes import COMMAND, PROCESS_TIMEOUT_S, RunningSimulator, clean_environment, run_command, wait_until

pytestmark = pytest.mark.slow


class ViewResponse:
    """Status, headers and body of a response."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def cookie_of(url: str) -> str:
    """Return the cookie that a browser has once it has opened the printed URL."""
    return f"krea-batch-{port_of(url)}={url.partition('token=')[2]}"


def raw_request(
    url: str,
    path: str,
    method: str = "GET",
    *,
    host: str | None = None,
    body: str | None = None,
    with_cookie: bool = True,
    **headers: str,
) -> ViewResponse:
    """Send a request for exactly this path, without normalising it."""
    connection = HTTPConnection("127.0.0.1", port_of(url), timeout=PROCESS_TIMEOUT_S)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host if host is not None else f"127.0.0.1:{port_of(url)}")
        if with_cookie and "Cookie" not in headers:
            connection.putheader("Cookie", cookie_of(url))
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(None if body is None else body.encode())
        return ViewResponse(connection.getresponse())
    finally:
        connection.close()


def token(url: str) -> str:
    """Return the page's token, which is in its HTML."""
    match = re.search(r'data-token="([^"]+)"', raw_request(url, "/").body.decode())
    assert match is not None
    return match[1]


class EventReader:
    """Reads the events that the page would receive."""

    def __init__(self, url: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", port_of(url), timeout=PROCESS_TIMEOUT_S)
        self._connection.request("GET", "/events", headers={"Cookie": cookie_of(url)})
        self._response = self._connection.getresponse()

    def __enter__(self) -> EventReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()

    def wait_for(self, event: str) -> dict[str, Any]:
        """Return the data of the next event of that name."""
        while self._response.readline() != f"event: {event}\n".encode():
            assert not self._response.closed
        data: dict[str, Any] = json.loads(self._response.readline().removeprefix(b"data: "))
        return data


class TestRoutes:
    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8788", "127.0.0.1.evil.example", "", "10.0.0.1", "["]
    )
    @pytest.mark.parametrize("path", ["/", "/items", "/events", "/thumbnail/1", "/image/1/0"])
    def test_other_host_names_are_refused(self, host: str, path: str, mixed_url: str) -> None:
        """A request for another host name, as after DNS rebinding, is refused and gets nothing of the run."""
        response = raw_request(mixed_url, path, host=host)
        assert response.status in (400, 403, 421)
        assert b"owl" not in response.body

    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
    def test_names_of_this_machine_are_accepted(self, name: str, mixed_url: str) -> None:
        """A request for 127.0.0.1 or localhost is answered."""
        assert raw_request(mixed_url, "/items", host=f"{name}:{port_of(mixed_url)}").status == 200

    @pytest.mark.parametrize(
        "path",
        [
            "/image/1/../../ledger.db", "/../ledger.db", "/images/../ledger.db", "/ledger.db", "/%2e%2e/ledger.db",
            "/image/..%2f..%2fledger.db/0", "/image/99/0", "/image/1/1", "/image/1/-1", "/image/0/0",
            "/image/-1/0", "/image/1/99999999999999999999", "/image/99999999999999999999/0", "/image/a/0",
            "/image/11/0", "/image/1", "/thumbnail/99", "/thumbnail/-1", "/thumbnail/99999999999999999999",
            "/thumbnail/x", "/thumbnail/11", "/thumbnail/1/1", "/state.js", "/retry/1", "/image/%F0%9F%A6%89/0",
            "/image/1%00/0", "/image/%D9%A1/0", "//", "/items/",
        ],
    )  # fmt: skip
    def test_unknown_paths(self, path: str, mixed_url: str) -> None:
        """Paths that leave the run directory, numbers without an image and unknown names are 404."""
        response = raw_request(mixed_url, path)
        assert response.status == 404
        assert b"SQLite" not in response.body

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
    @pytest.mark.parametrize("path", ["/", "/items", "/image/1/0", "/thumbnail/1"])
    def test_only_get(self, method: str, path: str, mixed_url: str) -> None:
        """Pages, items and images response to GET only."""
        assert raw_request(mixed_url, path, method).status in (403, 405)

    def test_retry_is_not_a_get(self, mixed_url: str) -> None:
        """A GET of /retry, as from a link or an image on another page, is refused."""
        assert raw_request(mixed_url, "/retry").status in (404, 405)

    def test_items_and_images(self, mixed_url: str, mixed_run: Path) -> None:
        """Items are all jobs, an image is its file byte for byte, and a thumbnail is an image."""
        items = json.loads(raw_request(mixed_url, "/items").body)
        rows = items["items"] if isinstance(items, dict) else items
        assert [row["id"] for row in rows] == [job.id for job in MIXED_JOBS]
        for number, name in enumerate(("cat.png", "cat-2.png")):
            response = raw_request(mixed_url, f"/image/{JOB_NUMBERS['cat']}/{number}")
            assert response.body == (mixed_run / "images" / name).read_bytes()
            assert response.headers["Content-Type"] == "image/png"
        assert raw_request(mixed_url, "/thumbnail/1").headers["Content-Type"].startswith("image/")

    @pytest.mark.parametrize("path", ["/", "/items", "/thumbnail/1", "/image/1/0", "/none"])
    def test_security_headers(self, path: str, mixed_url: str) -> None:
        """Content types are not guessed, no other page can frame or read a response, and no referrer is sent."""
        headers = raw_request(mixed_url, path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] in ("same-origin", "same-site")
        assert "Access-Control-Allow-Origin" not in headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy or "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http:" not in policy
        assert "*" not in policy

    def test_injected_scripts_do_not_run(self, mixed_url: str) -> None:
        """The Content-Security-Policy allows no inline scripts in general, and no eval."""
        policy = raw_request(mixed_url, "/").headers["Content-Security-Policy"]
        (scripts,) = re.findall(r"script-src ([^;]*)", policy)
        assert "'unsafe-inline'" not in scripts
        assert "'unsafe-eval'" not in scripts


class TestSecret:
    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/items",
            "/events",
            "/thumbnail/1",
            "/image/1/0",
            "/none",
            "/retry",
            "/?token=",
            "/?token=x",
            "/items?",
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
    def test_without_it_nothing_is_served(self, method: str, path: str, mixed_url: str) -> None:
        """A request of another user of this machine, who has no secret, gets nothing of the run."""
        for cookie in ("", f"krea-batch-{port_of(mixed_url)}=", f"krea-batch-{port_of(mixed_url)}=x", "token=é"):
            response = raw_request(mixed_url, path, method, with_cookie=False, Cookie=cookie)
            assert response.status == 403
            assert b"owl" not in response.body
            assert "Set-Cookie" not in response.headers

    def test_the_printed_url_sets_a_cookie(self, mixed_url: str) -> None:
        """The printed URL sets the secret as a cookie that scripts and other sites cannot use."""
        parts = urlsplit(mixed_url)
        response = raw_request(mixed_url, f"/?{parts.query}", with_cookie=False)
        assert response.status == 200
        assert b'content="0;url=/"' in response.body
        cookie = response.headers["Set-Cookie"]
        assert cookie.startswith(cookie_of(mixed_url))
        assert {part.strip() for part in cookie.split(";")[1:]} == {"HttpOnly", "Path=/", "SameSite=Strict"}
        assert response.headers["Cache-Control"] == "no-store"
        page = raw_request(mixed_url, "/", Cookie=cookie.partition(";")[0])
        assert b"data-token" in page.body
        secret = parts.query.partition("=")[2].encode()
        assert secret not in page.body + response.body

    @pytest.mark.parametrize("path", ["/items", "/image/1/0", "/retry"])
    def test_it_is_used_in_the_url_of_the_page_only(self, path: str, mixed_url: str) -> None:
        """Only the page is opened by the URL; everything else needs the cookie."""
        assert raw_request(mixed_url, f"{path}?{urlsplit(mixed_url).query}", with_cookie=False).status == 403

    def test_no_two_servers_have_the_same(self, start_view: StartView, mixed_run: Path, mixed_url: str) -> None:
        """Each server has a secret of its own, and refuses that of another."""
        other = start_view(mixed_run).url
        assert raw_request(other, "/items").status == 200
        secret = mixed_url.partition("token=")[2]
        assert raw_request(other, f"/?token={secret}", with_cookie=False).status == 403
        assert raw_request(other, "/items", Cookie=f"krea-batch-{port_of(other)}={secret}").status == 403

    def test_it_is_in_no_argument(self, mixed_run: Path, tmp_path: Path) -> None:
        """The browser is given a file that only this user can read, since all users see the arguments of a process.

        Nor does the browser inherit the API key.
        """
        seen = tmp_path / "seen"
        launcher = tmp_path / "bin" / "xdg-open"
        launcher.parent.mkdir()
        launcher.write_text(
            '#!/bin/sh\npath="${1#file://}"\n'
            f'{{ echo "$@"; ls -ld "$path" "${{path%/*}}"; cat "$path"; echo; env; }} > {seen}.part\n'
            f"mv {seen}.part {seen}\n"
        )
        launcher.chmod(0o755)
        process = subprocess.Popen(
            [*COMMAND, "view", str(mixed_run), "--port", "0"],
            env=clean_environment(PIXAZO_API_KEY="very-secret", PATH=f"{launcher.parent}:{os.environ['PATH']}"),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        url = re.search(r"http://\S+", process.stdout.readline())
        assert url is not None
        wait_until(seen.exists, process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PROCESS_TIMEOUT_S)
        arguments, first_mode, second_mode, *rest = seen.read_text().splitlines()
        assert url[0] not in arguments
        assert "token" not in arguments
        assert "drwx------" in first_mode + second_mode  # the directory, so that no other user can open the file
        assert f"url={url[0]}" in rest[0]
        assert "very-secret" not in seen.read_text()
        assert not Path(arguments.removeprefix("file://")).exists()


class TestRunDirectories:
    def test_an_image_that_is_missing(self, start_view: StartView, tmp_path: Path) -> None:
        """A deleted image and the thumbnail of a damaged one are 404; the others are served."""
        out = make_run(tmp_path / "run", SeedJob(id="deleted"), SeedJob(id="kept"), SeedJob(id="damaged"))
        (out / "images/deleted.png").unlink()
        (out / "images/damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
        running_view = start_view(out)
        statuses = {
            path: raw_request(running_view.url, path).status
            for path in ("/thumbnail/1", "/image/1/0", "/thumbnail/3", "/thumbnail/2", "/image/2/0", "/")
        }
        assert statuses == {
            "/thumbnail/1": 404, "/image/1/0": 404, "/thumbnail/3": 404,
            "/thumbnail/2": 200, "/image/2/0": 200, "/": 200,
        }  # fmt: skip
        assert running_view.close() == (0, "")

    def test_a_path_outside_the_run_directory(self, start_view: StartView, tmp_path: Path) -> None:
        """A path in the ledger that leaves the run directory, as in a ledger from someone else, is not served."""
        (tmp_path / "one.png").write_text("x")
        out = make_run(tmp_path / "run", SeedJob(id="one", prefix="../"))
        running_view = start_view(out)
        assert [raw_request(running_view.url, path).status for path in ("/image/1/0", "/thumbnail/1")] == [404, 404]

    def test_only_read(self, start_view: StartView, tmp_path: Path) -> None:
        """Serving a run creates and changes no file in its directory but thumbnails."""
        out = make_run(tmp_path / "run", SeedJob(id="one"))
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        running_view = start_view(out)
        for path in ("/", "/items", "/thumbnail/1", "/image/1/0"):
            assert raw_request(running_view.url, path).status == 200
        running_view.close()
        after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        assert {path: time for path, time in after.items() if path.parent.name != THUMBNAILS} == before


class TestStartAndStop:
    def test_a_port_in_use(self, tmp_path: Path) -> None:
        """If the port is in use, the command says so and what to do, and exits with 2."""
        out = make_run(tmp_path / "run")
        with socket.create_server(("127.0.0.1", 0)) as other_server:
            port = other_server.getsockname()[1]
            done = run_command("view", out, "--no-open", "--port", str(port), cwd=tmp_path)
        assert done.returncode == 2
        assert f"cannot listen on port {port}" in done.stderr
        assert "--port" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("folder", [".", "none", "file"])
    def test_no_run(self, folder: str, tmp_path: Path) -> None:
        """For a directory without a run, a missing one and a file, the command exits with 2."""
        (tmp_path / "file").touch()
        done = run_command("view", folder, "--no-open", "--port", "0", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr

    def test_ctrl_c_with_an_open_page(self, start_view: StartView, open_page: OpenPage, mixed_run: Path) -> None:
        """Ctrl-C ends the server without an error, although a page is connected and another connection is idle."""
        running_view = start_view(mixed_run)
        page = open_page(running_view.url, allowed_errors=CONNECTION_ERRORS)
        with socket.create_connection(("127.0.0.1", running_view.port)):
            assert page.locator(".tile").count() == len(MIXED_JOBS)
            assert running_view.close() == (0, "")

    def test_a_closed_page(self, start_view: StartView, open_page: OpenPage, tmp_path: Path) -> None:
        """A page that is closed while it is connected causes no error message."""
        out = make_run(tmp_path / "run", SeedJob(id="one"))
        running_view = start_view(out)
        open_page(running_view.url).close()
        make_run(out, SeedJob(id="two"))
        other_page = open_page(running_view.url, allowed_errors=CONNECTION_ERRORS)
        expect(other_page.locator(".tile")).to_have_count(2)
        assert running_view.close() == (0, "")

    def test_only_loopback(self, mixed_url: str) -> None:
        """The server listens on 127.0.0.1 and on no other address of this machine."""
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port_of(mixed_url)), timeout=PROCESS_TIMEOUT_S).close()


class TestRetry:
    def test_two_requests_start_one_retry(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A second request that arrives before the first retry has begun to run is refused."""

        class RetryRequest:
            headers: dict[str, str]

            async def read(self) -> bytes:
                return b'["one"]'

        async def send_two() -> None:
            gallery = ShownRun(make_run(tmp_path / "run", SeedJob(id="one", status=State.FAILED)))
            await gallery.refresh()
            started: list[list[str]] = []

            async def retry(ids: list[str]) -> None:
                started.append(ids)

            monkeypatch.setattr(gallery, "retry", retry)
            app, request = GalleryApp(gallery), RetryRequest()
            request.headers = {"X-Token": gallery.token}
            assert (await app.retry(cast("web.Request", request))).status == 202
            with pytest.raises(web.HTTPConflict):
                await app.retry(cast("web.Request", request))
            await asyncio.sleep(0)
            assert started == [["one"]]

        with ThreadPoolExecutor(1) as thread:  # a browser of other tests may have a running loop in this one
            thread.submit(asyncio.run, send_two()).result()

    @pytest.mark.parametrize("ids", [["00001\n00002"], ["none"], ["00001", " 00002"], ["00001\r"], [""]])
    def test_unknown_ids(
        self, ids: list[str], failed_run: Path, gateway: RunningSimulator, start_view: StartView
    ) -> None:
        """Ids that the run does not have are refused, and nothing is submitted."""
        url = start_view(failed_run, KREA_BATCH_GATEWAY=gateway.gateway_url).url
        response = raw_request(url, "/retry", "POST", body=json.dumps(ids), X_Token=token(url))
        assert response.status == 400
        assert set(ledger_states(failed_run).values()) == {State.ERRORED}

    def test_a_hostile_working_directory(
        self, failed_run: Path, gateway: RunningSimulator, start_view: StartView, tmp_path: Path
    ) -> None:
        """A retry does not run a module that lies in the working directory."""
        hostile = tmp_path / "hostile"
        hostile.mkdir()
        for name in ("click", "krea_batch"):
            (hostile / f"{name}.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
        command = [str(Path(sys.executable).with_name("krea-batch"))]
        env = {"KREA_BATCH_GATEWAY": gateway.gateway_url, "KREA_BATCH_POLL_INTERVAL": "0.1"}
        url = start_view(failed_run, command=command, cwd=hostile, **env).url
        with EventReader(url) as events:
            assert raw_request(url, "/retry", "POST", body='["00001"]', X_Token=token(url)).status == 202
            events.wait_for("command_output")
        assert ledger_states(failed_run)["00001"] == State.SUCCEEDED
        assert not (tmp_path / "owned").exists()

    def test_the_limit_of_the_run(self, failed_run: Path, gateway: RunningSimulator, start_view: StartView) -> None:
        """A retry keeps to --max-charges of the latest run, which the run directory remembers."""
        options = ("--max-attempts=1", "--poll-interval=0.1", "-q", "--gateway", gateway.gateway_url)
        run_command("run", "jobs.jsonl", "--out", "run", "--max-charges=2", *options, cwd=failed_run.parent)
        before = gateway.admin_request("/totals")["charged"]
        url = start_view(failed_run, KREA_BATCH_GATEWAY=gateway.gateway_url, KREA_BATCH_POLL_INTERVAL="0.1").url
        body = json.dumps(["00001", "00002", "00003"])
        with EventReader(url) as events:
            assert raw_request(url, "/retry", "POST", body=body, X_Token=token(url)).status == 202
            output = events.wait_for("command_output")
        assert not output["ok"]
        assert "max-charges" in output["text"]
        assert gateway.admin_request("/totals")["charged"] == before + 2

    def test_other_pages_cannot_retry(
        self, failed_run: Path, gateway: RunningSimulator, start_view: StartView
    ) -> None:
        """Without the page's token, or from another origin or host, a POST is refused and nothing is submitted."""
        running_view = start_view(failed_run)
        posts = len(gateway.admin_request("/ledger")["posts"])
        own, page_token = f"http://127.0.0.1:{running_view.port}", token(running_view.url)
        other_headers: list[dict[str, Any]] = [
            {"Authorization": f"Bearer {page_token}"},
            {"X_Csrf_Token": page_token},
            {"Cookie": f"{cookie_of(running_view.url)}; token={page_token}"},
        ]
        for body in ("{}", json.dumps({"token": page_token}), json.dumps({"ids": ["00001"], "confirm": True}), ""):
            json_type: dict[str, Any] = {"Content_Type": "application/json"}
            responses = [
                raw_request(running_view.url, "/retry", "POST", body=body, Origin=own, **json_type),
                raw_request(running_view.url, "/retry", "POST", body=body, Origin=own, Content_Type="text/plain"),
                *(
                    raw_request(running_view.url, "/retry", "POST", body=body, Origin=origin, **json_type, **header)
                    for origin in ("http://evil.example", "null", own.replace("127.0.0.1", "localhost.evil.example"))
                    for header in other_headers
                ),
                raw_request(running_view.url, "/retry", "POST", body=body, host="evil.example", X_Token=page_token),
                raw_request(running_view.url, "/retry", "POST", body=body, Origin=own, X_Token="é"),
                raw_request(running_view.url, "/retry", "POST", body=body, X_Token=page_token[:-1] + "~"),
            ]
            assert {response.status for response in responses} <= {400, 403, 421}
        assert set(ledger_states(failed_run).values()) == {State.ERRORED}
        assert running_view.close() == (0, "")
        assert len(gateway.admin_request("/ledger")["posts"]) == posts


def test_bytes_that_are_not_http(mixed_url: str) -> None:
    """Bytes that are not HTTP are answered with 400, and the page is still served."""
    with socket.create_connection(("127.0.0.1", port_of(mixed_url)), PROCESS_TIMEOUT_S) as connection:
        connection.sendall(b"\x16\x03\x01 no http\r\n\r\n")
        response = HTTPResponse(connection)
        response.begin()
    assert response.status == 400
    assert raw_request(mixed_url, "/").status == 200
