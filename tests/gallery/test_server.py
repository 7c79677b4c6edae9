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
from tests.engine_fixtures import states
from tests.gallery.conftest import MIXED, NUMBERS
from tests.gallery.gallery_fixtures import Look, Made, View, make_run
from tests.processes import PROCESS_TIMEOUT_S, SimulatorProcess, run_command

pytestmark = pytest.mark.slow


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, answer: HTTPResponse) -> None:
        self.status, self.headers, self.body = answer.status, answer.headers, answer.read()


def ask(
    url: str, path: str, method: str = "GET", *, host: str | None = None, body: str | None = None, **headers: str
) -> Answer:
    """Ask for exactly this path: nothing is normalised."""
    place = re.fullmatch(r"http://(.*):(\d+)/", url)
    assert place is not None
    connection = HTTPConnection(place[1], int(place[2]), timeout=PROCESS_TIMEOUT_S)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host if host is not None else f"{place[1]}:{place[2]}")
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(None if body is None else body.encode())
        return Answer(connection.getresponse())
    finally:
        connection.close()


def token(url: str) -> str:
    """The page's token, as somebody reads it who may read the page."""
    found = re.search(r'data-token="([^"]+)"', ask(url, "/").body.decode())
    assert found is not None
    return found[1]


class TestRoutes:
    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8788", "127.0.0.1.evil.example", "", "10.0.0.1", "["]
    )
    @pytest.mark.parametrize("path", ["/", "/items", "/events", "/thumbnail/1", "/picture/1/0"])
    def test_no_other_name_is_answered(self, host: str, path: str, mixed: str) -> None:
        """A page elsewhere that has its own name point to this machine gets nothing of the run."""
        answer = ask(mixed, path, host=host)
        assert answer.status in (400, 403, 421)
        assert b"owl" not in answer.body

    def test_its_names(self, mixed: str) -> None:
        """127.0.0.1 and localhost are this machine."""
        port = mixed.rstrip("/").rpartition(":")[2]
        assert [ask(mixed, "/items", host=f"{name}:{port}").status for name in ("127.0.0.1", "localhost")] == [
            200,
            200,
        ]

    @pytest.mark.parametrize(
        "path",
        [
            "/picture/1/../../ledger.db", "/../ledger.db", "/images/../ledger.db", "/ledger.db", "/%2e%2e/ledger.db",
            "/picture/..%2f..%2fledger.db/0", "/picture/99/0", "/picture/1/1", "/picture/1/-1", "/picture/0/0",
            "/picture/-1/0", "/picture/1/99999999999999999999", "/picture/99999999999999999999/0", "/picture/a/0",
            "/picture/11/0", "/picture/1", "/thumbnail/99", "/thumbnail/-1", "/thumbnail/99999999999999999999",
            "/thumbnail/x", "/thumbnail/11", "/thumbnail/1/1", "/page.js", "/retry/1", "/picture/%F0%9F%A6%89/0",
            "/picture/1%00/0", "/picture/%D9%A1/0", "//", "/items/",
        ],
    )  # fmt: skip
    def test_what_is_not_there_is_not_there(self, path: str, mixed: str) -> None:
        """Paths out of the folder, numbers that no picture has and unknown names are 404."""
        answer = ask(mixed, path)
        assert answer.status == 404
        assert b"SQLite" not in answer.body

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
    @pytest.mark.parametrize("path", ["/", "/items", "/picture/1/0", "/thumbnail/1"])
    def test_only_get(self, method: str, path: str, mixed: str) -> None:
        """Nothing but GET is known of what can be seen."""
        assert ask(mixed, path, method).status in (403, 405)

    def test_a_retry_is_no_get(self, mixed: str) -> None:
        """An image or a link that names /retry does nothing."""
        assert ask(mixed, "/retry").status in (404, 405)

    def test_all_is_there(self, mixed: str, mixed_run: Path) -> None:
        """Items are all jobs, pictures are the files' own bytes, thumbnails are smaller pictures."""
        items = json.loads(ask(mixed, "/items").body)
        rows = items["items"] if isinstance(items, dict) else items
        assert [row["id"] for row in rows] == [job.id for job in MIXED]
        for number, name in enumerate(("cat.png", "cat-2.png")):
            answer = ask(mixed, f"/picture/{NUMBERS['cat']}/{number}")
            assert answer.body == (mixed_run / "images" / name).read_bytes()
            assert answer.headers["Content-Type"] == "image/png"
        assert ask(mixed, "/thumbnail/1").headers["Content-Type"].startswith("image/")

    @pytest.mark.parametrize("path", ["/", "/items", "/thumbnail/1", "/picture/1/0", "/none"])
    def test_headers_for_safety(self, path: str, mixed: str) -> None:
        """Types are not guessed, no other page frames or reads it, nothing is told to others."""
        headers = ask(mixed, path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] in ("same-origin", "same-site")
        assert "Access-Control-Allow-Origin" not in headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy or "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http:" not in policy
        assert "*" not in policy

    def test_scripts_of_others_do_not_run(self, mixed: str) -> None:
        """The policy lets the page's own script run and no other that stands in it."""
        policy = ask(mixed, "/").headers["Content-Security-Policy"]
        (scripts,) = re.findall(r"script-src ([^;]*)", policy)
        assert "'unsafe-inline'" not in scripts
        assert "'unsafe-eval'" not in scripts


class TestFolders:
    def test_a_picture_that_is_gone(self, view: View, tmp_path: Path) -> None:
        """One that was deleted from disk, or is no picture any more, is 404; the others are there."""
        out = make_run(tmp_path / "run", Made(id="gone"), Made(id="kept"), Made(id="torn"))
        (out / "images/gone.png").unlink()
        (out / "images/torn.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
        viewed = view(out)
        found = {path: ask(viewed.url, path).status for path in ("/thumbnail/1", "/picture/1/0", "/thumbnail/3")}
        assert found == dict.fromkeys(found, 404)
        assert [ask(viewed.url, path).status for path in ("/thumbnail/2", "/picture/2/0", "/")] == [200, 200, 200]
        assert viewed.close() == (0, "")

    def test_a_path_out_of_the_folder(self, view: View, tmp_path: Path) -> None:
        """A ledger that names a file elsewhere, as a stranger's may, is not followed."""
        (tmp_path / "one.png").write_text("x")
        out = make_run(tmp_path / "run", Made(id="one", prefix="../"))
        viewed = view(out)
        assert [ask(viewed.url, path).status for path in ("/picture/1/0", "/thumbnail/1")] == [404, 404]

    def test_only_read(self, view: View, tmp_path: Path) -> None:
        """Looking leaves nothing in the folder and changes nothing in it."""
        out = make_run(tmp_path / "run", Made(id="one"))
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        viewed = view(out)
        for path in ("/", "/items", "/thumbnail/1", "/picture/1/0"):
            assert ask(viewed.url, path).status == 200
        viewed.close()
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


class TestBeginAndEnd:
    def test_a_port_in_use(self, tmp_path: Path) -> None:
        """Where the port is taken it says so, names what to do, and exits with 2."""
        out = make_run(tmp_path / "run")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = run_command("view", out, "--no-open", "--port", str(port), cwd=tmp_path)
        assert done.returncode == 2
        assert f"port {port} cannot be had" in done.stderr
        assert "--port" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("folder", [".", "none", "file"])
    def test_no_run(self, folder: str, tmp_path: Path) -> None:
        """A folder without a run, one that is not there and a file are bad usage."""
        (tmp_path / "file").touch()
        done = run_command("view", folder, "--no-open", "--port", "0", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr

    def test_ctrl_c_with_an_open_page(self, view: View, look: Look, mixed_run: Path) -> None:
        """It ends at once and in order, though a page listens and another connection is idle."""
        viewed = view(mixed_run)
        page = look(viewed.url, bears=("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING"))
        with socket.create_connection(("127.0.0.1", viewed.port)):
            assert page.locator(".tile").count() == len(MIXED)
            assert viewed.close() == (0, "")

    def test_a_page_that_is_closed(self, view: View, look: Look, tmp_path: Path) -> None:
        """A page that goes away while it listens is no error that anybody has to read of."""
        out = make_run(tmp_path / "run", Made(id="one"))
        viewed = view(out)
        look(viewed.url).close()
        make_run(out, Made(id="two"))
        witness = look(viewed.url)
        expect(witness.locator(".tile")).to_have_count(2)
        assert viewed.close() == (0, "")

    def test_loopback_alone(self, mixed: str) -> None:
        """It listens at 127.0.0.1 and at no other address of this machine."""
        port = int(mixed.rstrip("/").rpartition(":")[2])
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=PROCESS_TIMEOUT_S).close()


class TestRetry:
    def test_not_for_others(self, failed: Path, gateway: SimulatorProcess, view: View) -> None:
        """Without the page's token, or from another origin or host, a POST is refused and nothing is submitted."""
        viewed = view(failed)
        posts = len(gateway.admin_request("/ledger")["posts"])
        own, known = viewed.url.rstrip("/"), token(viewed.url)
        names = [{"Authorization": f"Bearer {known}"}, {"X_Csrf_Token": known}, {"Cookie": f"token={known}"}]
        for body in ("{}", json.dumps({"token": known}), json.dumps({"ids": ["00001"], "confirm": True}), ""):
            json_type = {"Content_Type": "application/json"}
            tries = [
                ask(viewed.url, "/retry", "POST", body=body, Origin=own, **json_type),
                ask(viewed.url, "/retry", "POST", body=body, Origin=own, Content_Type="text/plain"),
                *(
                    ask(viewed.url, "/retry", "POST", body=body, Origin=origin, **json_type, **name)
                    for origin in ("http://evil.example", "null", own.replace("127.0.0.1", "localhost.evil.example"))
                    for name in names
                ),
                ask(viewed.url, "/retry", "POST", body=body, host="evil.example", X_Token=known),
                ask(viewed.url, "/retry", "POST", body=body, Origin=own, X_Token="é"),
                ask(viewed.url, "/retry", "POST", body=body, X_Token=known[:-1] + "~"),
            ]
            assert {answer.status for answer in tries} <= {400, 403, 421}
        assert set(states(failed).values()) == {State.ERRORED}
        assert viewed.close() == (0, "")
        assert len(gateway.admin_request("/ledger")["posts"]) == posts


def test_bytes_that_are_no_request(mixed: str) -> None:
    """What is no HTTP is refused, and the page is served on."""
    port = int(mixed.rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), PROCESS_TIMEOUT_S) as connection:
        connection.sendall(b"\x16\x03\x01 no http\r\n\r\n")
        answer = HTTPResponse(connection)
        answer.begin()
    assert answer.status == 400
    assert ask(mixed, "/").status == 200
