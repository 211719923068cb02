"""API keys: kept hashed, read strictly, asked for where they are set."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import ConfigError, Unauthorized
from web.auth import ApiKeys, generate


def _file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_generated_key_lets_its_client_in(tmp_path: Path) -> None:
    """The key of a line is taken in either header, and tells the client's name."""
    key, line = generate("shop")
    other, other_line = generate("desk")
    keys = ApiKeys.load(_file(tmp_path, f"# clients\n\n{line}\n{other_line}\n"))

    assert key not in line
    assert keys.client(f"Bearer {key}", None) == "shop"
    assert keys.client(None, other) == "desk"


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        (None, None),
        ("Bearer wrong", None),
        (None, ""),
        ("Basic abc", None),
        ("Bearer \udcff", None),
    ],
)
def test_other_keys_are_refused(
    tmp_path: Path, authorization: str | None, api_key: str | None
) -> None:
    """No key, a wrong one and another scheme are refused alike."""
    keys = ApiKeys.load(_file(tmp_path, generate()[1]))

    with pytest.raises(Unauthorized, match="No known API key came"):
        keys.client(authorization, api_key)


def test_no_file_means_no_keys() -> None:
    """Without a file nobody is asked."""
    assert not ApiKeys.load("").required


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "holds no API key"), ("# none\n", "holds no API key"), ("a:b\n", "line 1"),
     (f"ok:{'0' * 64}\nx y:{'0' * 64}\n", "line 2"), (f"ok:{'0' * 64}\nok:{'1' * 64}", "twice")],
)  # fmt: skip
def test_unusable_file_is_refused(tmp_path: Path, text: str, told: str) -> None:
    """A file without keys, or with a line that is none, stops the start and names the line."""
    with pytest.raises(ConfigError, match=told):
        ApiKeys.load(_file(tmp_path, text))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that is not there is no reason to let everybody in."""
    with pytest.raises(ConfigError, match="API_KEYS_FILE"):
        ApiKeys.load(str(tmp_path / "absent"))


def test_name_that_cannot_stand_in_the_file_is_refused() -> None:
    """A client's name with a colon would be read as something else."""
    with pytest.raises(ConfigError, match="cannot name a key"):
        generate("a:b")
