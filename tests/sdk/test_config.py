"""Where the client finds server and token, and that a token goes nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

import remotegpu
from remotegpu import _config

URL, OTHER = "https://gpu.example.org", "https://other.example.org"


def test_arguments_win_over_environment_and_file(monkeypatch: pytest.MonkeyPatch) -> None:
    _config.save(_config.Target(OTHER, "from-file"))
    monkeypatch.setenv("REMOTEGPU_URL", OTHER)
    monkeypatch.setenv("REMOTEGPU_TOKEN", "from-env")
    assert _config.resolve(URL + "/", "mine") == _config.Target(URL, "mine")
    assert _config.resolve(None, None) == _config.Target(OTHER, "from-env")


def test_file_of_login_is_the_last_resort() -> None:
    _config.save(_config.Target(URL, "from-file"))
    assert _config.resolve(None, None) == _config.Target(URL, "from-file")


@pytest.mark.parametrize(("url", "expected"), [(OTHER, None), (URL, "known")])
def test_token_is_only_sent_to_its_own_server(
    monkeypatch: pytest.MonkeyPatch, url: str, expected: str | None
) -> None:
    _config.save(_config.Target(URL, "known"))
    assert _config.resolve(url, None).token == expected
    monkeypatch.setenv("REMOTEGPU_URL", URL)
    monkeypatch.setenv("REMOTEGPU_TOKEN", "known")
    assert _config.resolve(url, None).token == expected


def test_empty_token_means_none_whatever_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTEGPU_TOKEN", "from-env")
    assert _config.resolve(URL, "").token is None


def test_nothing_configured_says_what_to_do() -> None:
    with pytest.raises(remotegpu.NotConfigured, match="remotegpu login"):
        remotegpu.Client()


def test_kept_token_is_private_and_replaced_whole() -> None:
    file = _config.save(_config.Target(URL, "first"))
    file = _config.save(_config.Target(URL, "second"))
    assert file.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in file.parent.iterdir()] == ["credentials.json"]
    assert "second" in file.read_text()
    assert "second" not in repr(_config.load())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_file_that_others_can_read_is_refused(mode: int) -> None:
    file = _config.save(_config.Target(URL, "token"))
    file.chmod(mode)
    with pytest.raises(remotegpu.NotConfigured, match="chmod 600"):
        _config.resolve(None, None)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"url": 1, "token": "x"}', "\x00\xff"])
def test_broken_file_says_to_sign_in_again(content: str) -> None:
    file = _config.save(_config.Target(URL, "token"))
    file.write_text(content, encoding="latin-1")
    with pytest.raises(remotegpu.NotConfigured):
        _config.resolve(None, None)


def test_forgetting_twice_is_harmless() -> None:
    _config.save(_config.Target(URL, "token"))
    assert (_config.forget(), _config.forget()) == (True, False)


@pytest.mark.parametrize(
    "url",
    [
        "gpu.example.org",
        "ftp://x",
        "https://",
        "https://x:0",
        "https://x:notaport",
        "https://[",
        "https://x/?q=1",
        "https://x y.example.org",
    ],
)
def test_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(remotegpu.NotConfigured, match="not a URL"):
        remotegpu.Client(url, "")


def test_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(remotegpu.NotConfigured) as caught:
        remotegpu.Client("https://ada:hunter22@gpu.example.org", "")
    assert "hunter22" not in str(caught.value)


def test_server_under_a_path_is_kept(tmp_path: Path) -> None:
    with remotegpu.Client("https://x.example.org/gpu/", "") as client:
        assert client.url == "https://x.example.org/gpu"
