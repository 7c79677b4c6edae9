"""What `krea-batch view` answers, by plain HTTP, and how it begins and ends."""

from __future__ import annotations

import json
import re
import socket
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from playwright.sync_api import expect

from krea_batch.jobs import State
from tests.engine_fixtures import ledger_states
from tests.gallery.conftest import JOB_NUMBERS, MIXED_JOBS
from tests.gallery.gallery_fixtures import CONNECTION_ERRORS, OpenPage, SeedJob, StartView, make_run
from tests.processes import PROCESS_TIMEOUT_S, SimulatorProcess, run_command

pytestmark = pytest.mark.slow


class ViewResponse:
    """Status, headers and body of an answer."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()


def raw_request(
    url: str, path: str, method: str = "GET", *, host: str | None = None, body: str | None = None, **headers: str
) -> ViewResponse:
    """Ask for exactly this path: nothing is normalised."""
    port = re.fullmatch(r"http://(.*):(\d+)/", url)
    assert port is not None
    connection = HTTPConnection(port[1], int(port[2]), timeout=PROCESS_TIMEOUT_S)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host if host is not None else f"{port[1]}:{port[2]}")
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(None if body is None else body.encode())
        return ViewResponse(connection.getresponse())
    finally:
        connection.close()


def token(url: str) -> str:
    """The page's token, as someone reads it who may read the page."""
    match = re.search(r'data-token="([^"]+)"', raw_request(url, "/").body.decode())
    assert match is not None
    return match[1]


class TestRoutes:
    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8788", "127.0.0.1.evil.example", "", "10.0.0.1", "["]
    )
    @pytest.mark.parametrize("path", ["/", "/items", "/events", "/thumbnail/1", "/image/1/0"])
    def test_no_other_name_is_answered(self, host: str, path: str, mixed_url: str) -> None:
        """A page elsewhere that has its own name point to this machine gets nothing of the run."""
        answer = raw_request(mixed_url, path, host=host)
        assert answer.status in (400, 403, 421)
        assert b"owl" not in answer.body

    def test_its_names(self, mixed_url: str) -> None:
        """127.0.0.1 and localhost are this machine."""
        port = mixed_url.rstrip("/").rpartition(":")[2]
        assert [
            raw_request(mixed_url, "/items", host=f"{name}:{port}").status for name in ("127.0.0.1", "localhost")
        ] == [
            200,
            200,
        ]

    @pytest.mark.parametrize(
        "path",
        [
            "/image/1/../../ledger.db", "/../ledger.db", "/images/../ledger.db", "/ledger.db", "/%2e%2e/ledger.db",
            "/image/..%2f..%2fledger.db/0", "/image/99/0", "/image/1/1", "/image/1/-1", "/image/0/0",
            "/image/-1/0", "/image/1/99999999999999999999", "/image/99999999999999999999/0", "/image/a/0",
            "/image/11/0", "/image/1", "/thumbnail/99", "/thumbnail/-1", "/thumbnail/99999999999999999999",
            "/thumbnail/x", "/thumbnail/11", "/thumbnail/1/1", "/page.js", "/retry/1", "/image/%F0%9F%A6%89/0",
            "/image/1%00/0", "/image/%D9%A1/0", "//", "/items/",
        ],
    )  # fmt: skip
    def test_what_is_not_there_is_not_there(self, path: str, mixed_url: str) -> None:
        """Paths out of the folder, numbers that no image has and unknown names are 404."""
        answer = raw_request(mixed_url, path)
        assert answer.status == 404
        assert b"SQLite" not in answer.body

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
    @pytest.mark.parametrize("path", ["/", "/items", "/image/1/0", "/thumbnail/1"])
    def test_only_get(self, method: str, path: str, mixed_url: str) -> None:
        """Nothing but GET is known of what can be seen."""
        assert raw_request(mixed_url, path, method).status in (403, 405)

    def test_a_retry_is_no_get(self, mixed_url: str) -> None:
        """An image or a link that names /retry does nothing."""
        assert raw_request(mixed_url, "/retry").status in (404, 405)

    def test_all_is_there(self, mixed_url: str, mixed_run: Path) -> None:
        """Items are all jobs, images are the files' own bytes, thumbnails are smaller images."""
        items = json.loads(raw_request(mixed_url, "/items").body)
        rows = items["items"] if isinstance(items, dict) else items
        assert [row["id"] for row in rows] == [job.id for job in MIXED_JOBS]
        for number, name in enumerate(("cat.png", "cat-2.png")):
            answer = raw_request(mixed_url, f"/image/{JOB_NUMBERS['cat']}/{number}")
            assert answer.body == (mixed_run / "images" / name).read_bytes()
            assert answer.headers["Content-Type"] == "image/png"
        assert raw_request(mixed_url, "/thumbnail/1").headers["Content-Type"].startswith("image/")

    @pytest.mark.parametrize("path", ["/", "/items", "/thumbnail/1", "/image/1/0", "/none"])
    def test_security_headers(self, path: str, mixed_url: str) -> None:
        """Types are not guessed, no other page frames or reads it, nothing is told to others."""
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

    def test_scripts_of_others_do_not_run(self, mixed_url: str) -> None:
        """The policy lets the page's own script run and no other that is in it."""
        policy = raw_request(mixed_url, "/").headers["Content-Security-Policy"]
        (scripts,) = re.findall(r"script-src ([^;]*)", policy)
        assert "'unsafe-inline'" not in scripts
        assert "'unsafe-eval'" not in scripts


class TestFolders:
    def test_an_image_that_is_missing(self, start_view: StartView, tmp_path: Path) -> None:
        """One that was deleted from disk, or is no image any more, is 404; the others are there."""
        out = make_run(tmp_path / "run", SeedJob(id="gone"), SeedJob(id="kept"), SeedJob(id="torn"))
        (out / "images/gone.png").unlink()
        (out / "images/torn.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
        running_view = start_view(out)
        found = {
            path: raw_request(running_view.url, path).status
            for path in ("/thumbnail/1", "/image/1/0", "/thumbnail/3")
        }
        assert found == dict.fromkeys(found, 404)
        assert [raw_request(running_view.url, path).status for path in ("/thumbnail/2", "/image/2/0", "/")] == [
            200,
            200,
            200,
        ]
        assert running_view.close() == (0, "")

    def test_a_path_out_of_the_folder(self, start_view: StartView, tmp_path: Path) -> None:
        """A ledger that names a file elsewhere, as a stranger's may, is not followed."""
        (tmp_path / "one.png").write_text("x")
        out = make_run(tmp_path / "run", SeedJob(id="one", prefix="../"))
        running_view = start_view(out)
        assert [raw_request(running_view.url, path).status for path in ("/image/1/0", "/thumbnail/1")] == [404, 404]

    def test_only_read(self, start_view: StartView, tmp_path: Path) -> None:
        """Looking leaves nothing in the folder and changes nothing in it."""
        out = make_run(tmp_path / "run", SeedJob(id="one"))
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        running_view = start_view(out)
        for path in ("/", "/items", "/thumbnail/1", "/image/1/0"):
            assert raw_request(running_view.url, path).status == 200
        running_view.close()
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


class TestStartAndStop:
    def test_a_port_in_use(self, tmp_path: Path) -> None:
        """Where the port is taken it says so, names what to do, and exits with 2."""
        out = make_run(tmp_path / "run")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = run_command("view", out, "--no-open", "--port", str(port), cwd=tmp_path)
        assert done.returncode == 2
        assert f"cannot listen on port {port}" in done.stderr
        assert "--port" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("folder", [".", "none", "file"])
    def test_no_run(self, folder: str, tmp_path: Path) -> None:
        """A folder without a run, one that is not there and a file are bad usage."""
        (tmp_path / "file").touch()
        done = run_command("view", folder, "--no-open", "--port", "0", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr

    def test_ctrl_c_with_an_open_page(self, start_view: StartView, open_page: OpenPage, mixed_run: Path) -> None:
        """It ends immediately and in order, though a page listens and another connection is idle."""
        running_view = start_view(mixed_run)
        page = open_page(running_view.url, allowed_errors=CONNECTION_ERRORS)
        with socket.create_connection(("127.0.0.1", running_view.port)):
            assert page.locator(".tile").count() == len(MIXED_JOBS)
            assert running_view.close() == (0, "")

    def test_a_page_that_is_closed(self, start_view: StartView, open_page: OpenPage, tmp_path: Path) -> None:
        """A page that goes away while it listens is no error that anybody has to read of."""
        out = make_run(tmp_path / "run", SeedJob(id="one"))
        running_view = start_view(out)
        open_page(running_view.url).close()
        make_run(out, SeedJob(id="two"))
        other_page = open_page(running_view.url)
        expect(other_page.locator(".tile")).to_have_count(2)
        assert running_view.close() == (0, "")

    def test_loopback_alone(self, mixed_url: str) -> None:
        """It listens at 127.0.0.1 and at no other address of this machine."""
        port = int(mixed_url.rstrip("/").rpartition(":")[2])
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=PROCESS_TIMEOUT_S).close()


class TestRetry:
    def test_not_for_others(self, failed_run: Path, gateway: SimulatorProcess, start_view: StartView) -> None:
        """Without the page's token, or from another origin or host, a POST is refused and nothing is submitted."""
        running_view = start_view(failed_run)
        posts = len(gateway.admin_request("/ledger")["posts"])
        own, known = running_view.url.rstrip("/"), token(running_view.url)
        names = [{"Authorization": f"Bearer {known}"}, {"X_Csrf_Token": known}, {"Cookie": f"token={known}"}]
        for body in ("{}", json.dumps({"token": known}), json.dumps({"ids": ["00001"], "confirm": True}), ""):
            json_type = {"Content_Type": "application/json"}
            tries = [
                raw_request(running_view.url, "/retry", "POST", body=body, Origin=own, **json_type),
                raw_request(running_view.url, "/retry", "POST", body=body, Origin=own, Content_Type="text/plain"),
                *(
                    raw_request(running_view.url, "/retry", "POST", body=body, Origin=origin, **json_type, **name)
                    for origin in ("http://evil.example", "null", own.replace("127.0.0.1", "localhost.evil.example"))
                    for name in names
                ),
                raw_request(running_view.url, "/retry", "POST", body=body, host="evil.example", X_Token=known),
                raw_request(running_view.url, "/retry", "POST", body=body, Origin=own, X_Token="é"),
                raw_request(running_view.url, "/retry", "POST", body=body, X_Token=known[:-1] + "~"),
            ]
            assert {answer.status for answer in tries} <= {400, 403, 421}
        assert set(ledger_states(failed_run).values()) == {State.ERRORED}
        assert running_view.close() == (0, "")
        assert len(gateway.admin_request("/ledger")["posts"]) == posts


def test_bytes_that_are_no_request(mixed_url: str) -> None:
    """What is no HTTP is refused, and the page is served on."""
    port = int(mixed_url.rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), PROCESS_TIMEOUT_S) as connection:
        connection.sendall(b"\x16\x03\x01 no http\r\n\r\n")
        answer = HTTPResponse(connection)
        answer.begin()
    assert answer.status == 400
    assert raw_request(mixed_url, "/").status == 200
