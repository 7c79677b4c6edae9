"""Settings are parsed and checked; anything invalid is a SettingsError that names its parameter."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch import Engine
from krea_batch.errors import SettingsError
from krea_batch.pipeline.rate_limiter import RateLimiter
from krea_batch.settings import MAX_NUMBER, OPTIONS, AmbiguousPolicy, ApiKey, Rate, Settings, Webhook, is_loopback

OUT_DIR = Path("out")
ENGINE_ONLY_PARAMETERS = {
    "self", "settings", "api_key", "rate_limiter", "listeners", "gateway_client", "clock", "random",
}  # fmt: skip


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
def test_invalid_rates(text: str) -> None:
    """Anything else is invalid. The error names the parameter and shows a valid rate."""
    with pytest.raises(SettingsError) as caught:
        Rate.parse(text, "poll_rate")
    assert caught.value.parameter == "poll_rate"
    assert str(caught.value) == f"poll_rate: invalid rate {text!r}; use e.g. 10/s, 600/min or 5000/h"


def test_auto_is_for_submits_only() -> None:
    """`rate` may be auto, and its error says so. `poll_rate` may not."""
    assert Rate.parse(" auto ").is_auto
    assert not Rate.parse("10/s").is_auto
    with pytest.raises(
        SettingsError, match=r"^rate: invalid rate 'fast'; use e\.g\. 10/s, 600/min or 5000/h, or auto$"
    ):
        Rate.parse("fast")
    with pytest.raises(SettingsError, match="poll_rate: invalid rate 'auto'"):
        Rate.parse("auto", "poll_rate")


@given(st.text(max_size=20))
def test_no_rate_raises_anything_else(text: str) -> None:
    """Every text is a rate above 0 or raises SettingsError."""
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
        ("download_patience_s", {"download_patience_s": 0}),
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
def test_invalid_values(parameter: str, options: dict[str, Any]) -> None:
    """An invalid value raises a SettingsError with its parameter, and with a hint or a range."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_options(OUT_DIR, **options)
    assert caught.value.parameter == parameter
    assert caught.value.hint or caught.value.problem.startswith("must be ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_in_flight": 0}, "max_in_flight: must be at least 1 (got 0)"),
        ({"max_charges": -1}, "max_charges: must be at least 0 (got -1)"),
        ({"poll_interval_s": 0}, "poll_interval_s: must be greater than 0 (got 0)"),
        ({"job_timeout_s": math.inf}, "job_timeout_s: must be less than 10,000,000 (got inf)"),
        ({"ambiguous": "maybe"}, "ambiguous: unknown choice 'maybe'; use keep or resubmit"),
        ({"colour": "red"}, "colour: unknown setting; see the fields of Settings"),
    ],
)
def test_messages(options: dict[str, Any], message: str) -> None:
    """A message has the form "parameter: problem; hint"; an error of a range needs no hint."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_options(OUT_DIR, **options)
    assert str(caught.value) == message


# ---- the table of options --------------------------------------------------------------------------------


def numeric_fields() -> dict[str, type]:
    """Return the names and types of the settings that are numbers, or None."""
    types = {field.name: field.type.__origin__ for field in Settings.fields() if field.name in OPTIONS}
    return {
        name: int if kind == int | None else kind for name, kind in types.items() if kind in (int, float, int | None)
    }


def valid_numbers(name: str) -> tuple[float, float]:
    """Return the smallest and the largest valid value of a numeric setting."""
    option = OPTIONS[name]
    if option.minimum is not None:
        return option.minimum, 10**9
    assert option.above is not None
    return math.nextafter(option.above, math.inf), math.nextafter(MAX_NUMBER, 0)


def invalid_numbers(name: str) -> list[float]:
    """Return values of a numeric setting that are outside its range."""
    option = OPTIONS[name]
    if option.minimum is not None:
        return [option.minimum - 1, -(10**9)]
    assert option.above is not None
    return [option.above, option.above - 1.0, -math.inf, math.nan, MAX_NUMBER, math.inf]


def test_every_setting_is_in_the_table() -> None:
    """Each field of `Settings` but `out` has an option with a help text, and no option has another name."""
    assert list(OPTIONS) == [field.name for field in Settings.fields() if field.name != "out"]
    assert all(option.help.endswith(".") for option in OPTIONS.values())


@pytest.mark.parametrize("name", numeric_fields())
def test_every_number_has_a_range(name: str) -> None:
    """A whole number has a minimum, and any other number an exclusive lower limit; the default is in the range."""
    option, kind = OPTIONS[name], numeric_fields()[name]
    assert (option.minimum is not None, option.above is not None) == ((True, False) if kind is int else (False, True))
    default = getattr(Settings(out=OUT_DIR), name)
    assert default is None or valid_numbers(name)[0] <= default <= valid_numbers(name)[1]


@pytest.mark.parametrize(
    "name", [name for name, option in OPTIONS.items() if {option.minimum, option.above} != {None}]
)
def test_ranges_are_of_numbers(name: str) -> None:
    """Only numbers have a range."""
    assert name in numeric_fields()


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in numeric_fields() for value in valid_numbers(name)]
)
def test_the_limits_of_a_range_are_valid(name: str, value: float) -> None:
    """The smallest and the largest number of the table's range are accepted."""
    assert getattr(Settings.from_options(OUT_DIR, **{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in numeric_fields() for value in invalid_numbers(name)]
)
def test_numbers_outside_the_range_are_refused(name: str, value: float) -> None:
    """A number outside the table's range raises a SettingsError with the parameter, the limit and the number."""
    option = OPTIONS[name]
    with pytest.raises(SettingsError) as caught:
        Settings.from_options(OUT_DIR, **{name: value})
    assert caught.value.parameter == name
    limits = {
        f"must be at least {option.minimum}",
        f"must be greater than {option.above}".removesuffix(".0"),
        f"must be less than {MAX_NUMBER:,.0f}",
    }
    problem, _, number = caught.value.problem.partition(" (got ")
    assert problem in limits
    assert number == f"{value})"


def test_the_engine_has_a_parameter_for_each_setting() -> None:
    """The parameters of `Engine` are the fields of `Settings`, in their order, and a few of its own."""
    parameters = inspect.signature(Engine.__init__).parameters
    names = [name for name in parameters if name not in ENGINE_ONLY_PARAMETERS]
    assert names == [field.name for field in Settings.fields()]
    assert set(parameters) >= ENGINE_ONLY_PARAMETERS
    assert all(parameters[name].default is None for name in names), "None means the default of Settings"


def changed_value(name: str) -> Any:
    """Return a valid value of a setting that is not its default."""
    values: dict[str, Any] = {
        "rate": Rate(3.0, "3/s"), "poll_rate": Rate(7.0, "7/s"), "shared_quota": True, "sink": "s3://bucket/folder",
        "references": "s3://bucket/refs", "count_server_errors": True,
        "ambiguous": AmbiguousPolicy.RESUBMIT, "gateway": "https://gateway.example",
        "webhook": Webhook(listen="127.0.0.1:0"), "allow_networks": ("10.0.0.0/8",), "batch": "cats",
        "ledger": "postgresql://db.example/krea",
    }  # fmt: skip
    return values.get(name, 7)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_engine_passes_each_setting_on(name: str) -> None:
    """A value passed to `Engine` is in its settings."""
    value = changed_value(name)
    default = getattr(Settings(out=OUT_DIR), name)
    assert value != default
    others = {"ledger": changed_value("ledger")} if name == "batch" else {}
    engine = Engine(OUT_DIR, api_key="key", **others | {name: value})
    assert getattr(engine.settings, name) == value


@pytest.mark.parametrize("name", OPTIONS)
def test_settings_and_a_single_setting(name: str) -> None:
    """`Engine` takes its settings as one object or as keywords, not as both."""
    with pytest.raises(SettingsError, match="cannot be combined"):
        Engine(settings=Settings(out=OUT_DIR), api_key="key", **{name: changed_value(name)})


def test_settings_and_a_rate_limiter() -> None:
    """A rate limiter replaces the rate of the settings, and nothing else of them."""
    settings = Settings(out=OUT_DIR, max_in_flight=7)
    engine = Engine(settings=settings, api_key="key", rate_limiter=RateLimiter("3/s"))
    assert engine.settings == msgspec.structs.replace(settings, rate=Rate(3.0, "3/s"))


# ---- gateways --------------------------------------------------------------------------------------------


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
    """A gateway is an https origin, or an http origin on loopback."""
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
    """Unencrypted connections, paths, user names, and invalid ports and hosts are refused before anything is sent."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_options(OUT_DIR, gateway=url)
    assert caught.value.parameter == "gateway"


@pytest.mark.parametrize("network", ["", "10.0.0.1/8", "10.0.0.0/33", "fake", "*", "10.0.0.0-10.0.0.9", "1::/200"])
def test_what_is_no_network(network: str) -> None:
    """A text that is no network is an error; one network may be given as a text, several in any iterable."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_options(OUT_DIR, allow_networks=["198.18.0.0/15", network])
    assert caught.value.parameter == "allow_networks"
    for given_networks in ("10.0.0.0/8", ["10.0.0.0/8"], iter(["10.0.0.0/8"])):
        settings = Settings.from_options(OUT_DIR, allow_networks=given_networks)
        assert settings.allowed_networks == (ip_network("10.0.0.0/8"),)


@given(st.text(max_size=30) | st.from_regex(r"https?://[\[\]@:/?#\\.a-z0-9%-]{0,30}", fullmatch=True))
def test_no_gateway_raises_anything_else(url: str) -> None:
    """Every text is a gateway or raises SettingsError. A gateway that is not https is on loopback."""
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
    """The origin is scheme and host in lower case, without the port."""
    assert Settings.from_options(OUT_DIR, gateway=url).origin == origin


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.255.255.254", "::1"])
def test_loopback(host: str) -> None:
    """These hosts are loopback."""
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "localhost.example", "127.0.0.1.example", "127.1", "127.0.0.256", "127.0.0.٣", "0.0.0.0", "::", "128.0.0.1"]
    + ["127.0.0.1\n", " 127.0.0.1", "2130706433"],
)
def test_what_only_looks_like_loopback(host: str) -> None:
    """Names and numbers that only look like loopback are not loopback."""
    assert not is_loopback(host)


# ---- the key ---------------------------------------------------------------------------------------------

SETTINGS_KEY = "s3cret-k3y-0123456789"


def test_the_key_is_hidden() -> None:
    """No repr, str, format, error, JSON or pickle contains the key; only `reveal` returns it."""
    key = ApiKey(SETTINGS_KEY)
    assert key.reveal() == SETTINGS_KEY
    for text in (repr(key), str(key), f"{key}", f"{key!r:>40}", f"{[key]}"):
        assert SETTINGS_KEY not in text
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
def test_invalid_keys(text: str) -> None:
    """A key that cannot be sent in a header is refused, and the error does not show it."""
    with pytest.raises(SettingsError) as caught:
        ApiKey(text)
    assert SETTINGS_KEY not in str(caught.value)
    assert SETTINGS_KEY not in repr(caught.value)
