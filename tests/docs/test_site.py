"""The site that is built of the pages: nothing is missing there, and nothing is fetched from elsewhere."""

from __future__ import annotations

import html
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from playwright.sync_api import sync_playwright

import krea_batch
import krea_batch.observability
import krea_batch.testing
from krea_batch.cli.app import COMMANDS, app
from krea_batch.cli.ui.explanations import load_explanations
from tests.docs.pages import PAGES, ROOT
from tests.gallery.conftest import BROWSER_ARGUMENTS, BROWSER_NAMES
from tests.messages.all_cases import CASES
from tests.messages.message_case import ANY
from tests.processes import PROCESS_TIMEOUT_S

FETCHED_URL = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\" >]+)|<link\b[^>]*\bhref=\"?([^\" >]+)")
FETCHED_BY_STYLES_URL = re.compile(r"url\(\"?([^\")]+)|@import \"?([^\";]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_there(site: Path) -> None:
    """Each page of the documentation, and each that is made of a file of the source, is built, and in the menu."""
    built = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    expected = {page.replace(".md", ".html") for page in PAGES} | {"changelog.html", "measured.html", "security.html"}
    assert built == expected | {"404.html"}
    index = (site / "index.html").read_text("utf-8")
    assert all(f'href="{page}"' in index for page in expected)


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """No page loads a script, a style, a font or an image from another host."""
    pages = "".join(path.read_text("utf-8") for path in site.rglob("*.html"))
    styles = "".join(path.read_text("utf-8") for path in site.rglob("*.css"))
    found = FETCHED_URL.findall(pages) + FETCHED_BY_STYLES_URL.findall(styles)
    fetched = {url for either in found for url in either}
    assert any(url.endswith(".js") for url in fetched)
    assert any(url.endswith(".css") for url in fetched)
    assert [url for url in fetched if re.match(r"(?:https?:)?//", url)] == []


def test_the_whole_library_is_there(site: Path) -> None:
    """Every public name has its place in the reference, and structs show their fields."""
    page = (site / "reference/library.html").read_text("utf-8")
    public = {*krea_batch.__all__, *krea_batch.observability.__all__} - {"__version__"}
    anchors = {anchor.rpartition(".")[2] for anchor in re.findall(r'id="(krea_batch\.[\w.]+)"', page)}
    assert public - anchors == set()
    signature = re.sub(r"<[^>]+>", "", page.partition('id="krea_batch.events.SubmitsPaused"')[2])[:400]
    assert "wait_s: float" in signature


def test_everything_is_described(site: Path) -> None:
    """Each public class and function has the first line of its docstring in the reference."""
    page = (site / "reference/library.html").read_text("utf-8")
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())
    missing = []
    for package in (krea_batch, krea_batch.observability, krea_batch.testing):
        for name in {*package.__all__} - {"__version__"}:
            public = getattr(package, name)
            if inspect.isclass(public) or inspect.isfunction(public):
                first_line = (inspect.getdoc(public) or "").partition("\n")[0]
                assert first_line, name
                if first_line.replace("`", "") not in text:
                    missing.append(name)
    assert missing == []


def test_the_whole_command_line_is_there(site: Path) -> None:
    """Every command has its place in the reference, with each of its options."""
    page = re.sub(r"<[^>]+>", "", (site / "reference/command-line.html").read_text("utf-8"))
    for name in COMMANDS:
        command = app.get_command(click.Context(app), name)
        assert command is not None
        _, found, rest = page.partition(f"krea-batch {name} [OPTIONS]")
        assert found, f"{name} is not there"
        section = rest.partition("Usage:")[0]
        options = [option for param in command.params if isinstance(param, click.Option) for option in param.opts]
        assert [option for option in options if option not in section] == []


def test_every_explanation_has_its_place(site: Path) -> None:
    """Each page and anchor that an error or `krea-batch explain` names exists."""
    pages = {explanation.page for explanation in load_explanations().values()}
    assert {page.partition("#")[0] for page in pages} == {"troubleshooting.html", "reference/messages.html"}
    anchors = {
        f"{name}#{anchor}"
        for name in ("troubleshooting.html", "reference/messages.html")
        for anchor in re.findall(r'id="?([^" >]+)', (site / name).read_text("utf-8"))
    }
    assert pages - anchors == set()


def test_every_message_is_there_word_for_word(site: Path) -> None:
    """The page of messages shows each of them as it is printed: nothing in it was read as Markdown."""
    page = (site / "reference/messages.html").read_text("utf-8")
    shown = {
        html.unescape(code.replace("<br>", "\n"))
        for code in re.findall(r"<code class=\"?sentence\"?[^>]*>(.*?)</code>", page)
    }
    messages = {case.message.replace(ANY, "…") for cases in CASES.values() for case in cases}
    assert messages - shown == set()


@pytest.mark.slow
def test_the_search_works_from_disk(site: Path) -> None:
    """In a browser that has opened a file, the search finds a page and leads there, without a request."""
    executable = next(filter(None, map(shutil.which, BROWSER_NAMES)), None)
    assert executable, f"this test needs a browser ({', '.join(BROWSER_NAMES)}); apt-get install chromium"
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS)
        page = browser.new_page()
        page.set_default_timeout(PROCESS_TIMEOUT_S * 1000)
        page.on("request", lambda request: requests.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.get_by_label("Search", exact=True).first.click(force=True)
        page.keyboard.type("charged twice ambiguous")
        page.locator(".md-search-result__link[href*='money.html']").first.click()
        page.wait_for_url("**/money.html*")
        assert page.title().startswith("Questions about money")
        browser.close()
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
