"""Options go in as users write them; typed settings or a SettingsError come out."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.errors import SettingsError
from krea_batch.settings import AmbiguousPolicy, ApiKey, Rate, Settings, is_loopback

OUT_DIR = Path("out")


@pytest.mark.parametrize(
    ("text", "per_s"),
    [
        ("10/s", 10),
        ("600/min", 10),
        ("5000/h", 5000 / 3600),
        ("2.5/s", 2.5),
        ("6/min", 0.1),
        ("1/hour", 1 / 3600),
        ("3/sec", 3),
        ("3/second", 3),
        ("30/m", 0.5),
        ("30/minute", 0.5),
        (" 10 / s ", 10),
        ("100000/s", 100_000),
    ],
)
def test_rates(text: str, per_s: float) -> None:
    """A rate is a number of requests per second, minute or hour, whole or not."""
    rate = Rate.parse(text)
    assert rate.per_s == pytest.approx(per_s)
    assert rate.text == text.strip()


@pytest.mark.parametrize(
    "text",
    ["", "10", "/s", "10/", "ten/s", "-1/s", "0/s", "0.0/min", "1e3/s", "inf/s", "nan/s", "10/d", "10/ms", "10/s/s"]
    + ["100001/s", "9" * 400 + "/s", "1/s\n2/s", "10 per s", "10\\s", "+10/s", ".5/s", "5./s", "1_0/s"],
)
def test_what_is_no_rate(text: str) -> None:
    """Anything else is no rate; the error names the option and shows one."""
    with pytest.raises(SettingsError, match="10/s") as caught:
        Rate.parse(text, "poll-rate")
    assert caught.value.parameter == "poll-rate"
    assert str(caught.value).startswith("poll-rate: ")


@given(st.text(max_size=20))
def test_no_text_raises_anything_else(text: str) -> None:
    """Whatever is written for a rate, it is a rate above 0 or a SettingsError."""
    try:
        assert 0 < Rate.parse(text).per_s <= 100_000
    except SettingsError:
        return


# ---- settings --------------------------------------------------------------------------------------------


def test_defaults() -> None:
    """The defaults are those of docs/reference/settings.md and the API document."""
    settings = Settings(out=OUT_DIR)
    assert settings.gateway == "https://gateway.pixazo.ai"
    assert settings.max_in_flight == 500
    assert settings.poll_interval_s == 5
    assert settings.ambiguous is AmbiguousPolicy.KEEP
    assert settings.max_charges is None


def test_from_options_reads_text() -> None:
    """Rates and the choice for ambiguous jobs may be text."""
    settings = Settings.from_options(OUT_DIR, rate="6/min", poll_rate="20/s", ambiguous="resubmit", max_charges=0)
    assert settings.rate.per_s == pytest.approx(0.1)
    assert settings.poll_rate is not None
    assert settings.poll_rate.per_s == 20
    assert settings.ambiguous is AmbiguousPolicy.RESUBMIT
    assert Settings.from_options(OUT_DIR, rate=Rate(3.0, "3/s"), poll_rate=None).rate.per_s == 3


@pytest.mark.parametrize(
    ("parameter", "options"),
    [
        ("max_in_flight", {"max_in_flight": 0}),
        ("max_in_flight", {"max_in_flight": -5}),
        ("max_attempts", {"max_attempts": 0}),
        ("max_charges", {"max_charges": -1}),
        ("downloads", {"downloads": 0}),
        ("download_attempts", {"download_attempts": 0}),
        ("poll_interval_s", {"poll_interval_s": 0}),
        ("poll_interval_s", {"poll_interval_s": -5.0}),
        ("poll_interval_s", {"poll_interval_s": math.nan}),
        ("poll_interval_s", {"poll_interval_s": math.inf}),
        ("job_timeout_s", {"job_timeout_s": 0.0}),
        ("request_timeout_s", {"request_timeout_s": math.inf}),
        ("ambiguous", {"ambiguous": "maybe"}),
        ("rate", {"rate": "fast"}),
        ("rate", {"rate": 10}),
        ("rate", {"rate": None}),
        ("poll_rate", {"poll_rate": 2.5}),
        ("poll_rate", {"poll_rate": "x"}),
        ("colour", {"colour": "red"}),
    ],
)
def test_values_without_meaning(parameter: str, options: dict[str, Any]) -> None:
    """A value without meaning is a SettingsError that names its parameter."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_options(OUT_DIR, **options)
    assert caught.value.parameter == parameter
    assert caught.value.hint or caught.value.problem.startswith("must be ")


@pytest.mark.parametrize(
    "url",
    [
        "https://gateway.pixazo.ai",
        "https://gateway.pixazo.ai/",
        "https://gateway.example:8443",
        "https://10.0.0.1",
        "http://127.0.0.1:8080",
        "http://127.5.5.5",
        "http://localhost:1",
        "http://[::1]:65535",
    ],
)
def test_gateways(url: str) -> None:
    """A gateway is an https origin, or an http one on this machine."""
    assert Settings.from_options(OUT_DIR, gateway=url).gateway == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gateway.pixazo.ai",
        "http://gateway.pixazo.ai",
        "http://192.168.0.1",
        "http://0.0.0.0",
        "http://127.0.0.1.example",
        "http://127.0.0.256",
        "http://127.999.999.999",
        "http://localhost.example",
        "ftp://localhost",
        "file:///etc/passwd",
        "https://",
        "https://gateway.example/v1",
        "https://gateway.example?x=1",
        "https://gateway.example#x",
        "https://user@gateway.example",
        "https://user:word@gateway.example",
        "https://:word@gateway.example",
        "https://@gateway.example",
        "https://gateway.example:99999",
        "https://gateway.example:port",
        "https://[::1",
        "https://[gateway]",
        "https://gate way.example",
        "https://gateway.example\n",
        "https://" + "a" * 64 + ".example",
        "https://gateway..example",
    ],
)
def test_what_is_no_gateway(url: str) -> None:
    """Clear text, paths, user names, ports and hosts that cannot be are refused before anything is sent."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_options(OUT_DIR, gateway=url)
    assert caught.value.parameter == "gateway"


@given(st.text(max_size=30) | st.from_regex(r"https?://[\[\]@:/?#\\.a-z0-9%-]{0,30}", fullmatch=True))
def test_no_gateway_raises_anything_else(url: str) -> None:
    """Whatever is given as a gateway, it is one or a SettingsError; the key never travels in clear text."""
    try:
        settings = Settings(out=OUT_DIR, gateway=url)
    except SettingsError:
        return
    assert settings.origin.startswith("https://") or is_loopback(settings.origin.removeprefix("http://").strip("[]"))


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://gateway.pixazo.ai/", "https://gateway.pixazo.ai"),
        ("https://GATEWAY.pixazo.ai:443", "https://gateway.pixazo.ai"),
        ("http://127.0.0.1:4711", "http://127.0.0.1"),
        ("http://127.0.0.1:4712", "http://127.0.0.1"),
    ],
)
def test_origin(url: str, origin: str) -> None:
    """The origin is scheme and host, the same for every port and way of writing it."""
    assert Settings.from_options(OUT_DIR, gateway=url).origin == origin


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.255.255.254", "::1"])
def test_loopback(host: str) -> None:
    """This machine goes by these names."""
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "localhost.example", "127.0.0.1.example", "127.1", "127.0.0.256", "127.0.0.٣", "0.0.0.0", "::", "128.0.0.1"]
    + ["127.0.0.1\n", " 127.0.0.1", "2130706433"],
)
def test_what_only_looks_like_loopback(host: str) -> None:
    """Names and numbers that only look like this machine are not it."""
    assert not is_loopback(host)


# ---- the key ---------------------------------------------------------------------------------------------

SETTINGS_KEY = "s3cret-k3y-0123456789"


def test_the_key_hides() -> None:
    """A key shows itself in no repr, str, format, error, settings, JSON or pickle; only `reveal` gives it."""
    key = ApiKey(SETTINGS_KEY)
    assert key.reveal() == SETTINGS_KEY
    for shown in (repr(key), str(key), f"{key}", f"{key!r:>40}", f"{[key]}"):
        assert SETTINGS_KEY not in shown
    assert not hasattr(key, "__dict__")
    for expose in (pickle.dumps, copy.copy, copy.deepcopy, msgspec.json.encode):
        with pytest.raises(TypeError) as caught:
            expose(key)
        assert SETTINGS_KEY not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        f"{SETTINGS_KEY}\n",
        f"{SETTINGS_KEY}\r\nX-Evil: 1",
        f"{SETTINGS_KEY} x",
        f"{SETTINGS_KEY}\t",
        f"{SETTINGS_KEY}é",
        f"{SETTINGS_KEY}\0",
    ],
)
def test_what_is_no_key(text: str) -> None:
    """A key that cannot be sent in a header is refused, in words that do not show it."""
    with pytest.raises(SettingsError) as caught:
        ApiKey(text)
    assert SETTINGS_KEY not in str(caught.value)
    assert SETTINGS_KEY not in repr(caught.value)
