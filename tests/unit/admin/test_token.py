"""The admin API's own token: made once, for its user alone, and never taken from a file that is somebody else's."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tollhouse.admin.token import token_file, token_in
from tollhouse.cli import main
from tollhouse.config.parse import parse
from tollhouse.core.errors import ConfigError


def test_it_is_made_once_and_only_its_user_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "t.db.admin-token"
    before = os.umask(0)
    try:
        token = token_in(path)
    finally:
        os.umask(before)
    assert token.startswith("tha_")
    assert len(token) == 47
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token_in(path) == token
    assert os.listdir(tmp_path) == [path.name]


def test_gateways_that_start_at_once_have_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.db.admin-token"
    with ThreadPoolExecutor(16) as threads:
        assert len(set(threads.map(token_in, [path] * 64))) == 1
    assert os.listdir(tmp_path) == [path.name]


def test_an_operator_may_write_another(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text("a-token-of-my-own-making-32-characters\n")
    assert token_in(path) == "a-token-of-my-own-making-32-characters"


@pytest.mark.parametrize("content", ["", "short", "with blanks in it and quite a lot of them", "x" * 600, "é" * 40])
def test_what_is_no_token_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(ConfigError, match="has no token in it"):
        token_in(path)


@pytest.mark.parametrize("room", [0, 20, 40])
def test_a_disk_without_room_leaves_nothing(tmp_path: Path, room: int) -> None:
    """Neither half a token, which would be taken for one or stand in the way, nor files that nobody wants."""
    script = (
        "import resource, sys; from pathlib import Path; from tollhouse.admin.token import token_in\n"
        "from tollhouse.core.errors import ConfigError\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        "try: token_in(Path(sys.argv[1]))\n"
        "except ConfigError as error: print(error.problems[0].message)\n"
    )
    path = tmp_path / "t.db.admin-token"
    command = [sys.executable, "-B", "-c", script, str(path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "which keeps its token, cannot be used: " in told
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_of_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    token_in(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="not this user's alone") as refused:
        token_in(path)
    assert [problem.path for problem in refused.value.problems] == ["server.admin"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_that_belongs_to_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token_in(path)
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigError, match="alone"):
        token_in(path)


def test_links_pipes_and_directories_are_refused(tmp_path: Path) -> None:
    token_in(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "directory").mkdir(0o700)
    for name in ("link", "dangling", "pipe", "directory"):
        with pytest.raises(ConfigError):
            token_in(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ConfigError, match="No such file"):
        token_in(tmp_path / "missing" / "token")


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse(f"ledger: sqlite:{tmp_path}/a.db\n", "t", {}).config
    assert token_file(config) == tmp_path / "a.db.admin-token"
    assert token_file(parse("routes: []\n", "t", {}).config) == tmp_path / "tollhouse.admin-token"
    file = tmp_path / "tollhouse.yaml"
    file.write_text("server: {admin: 127.0.0.1:15000}\nledger: sqlite:b.db\n")
    assert main(["admin-token"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/b.db.admin-token\n"
    keys = f"[{{name: eve, key_hash: {'ab' * 32}}}]"
    for text, why in (
        ("routes: []\n", "there is no admin API"),
        (f"server: {{admin: {{address: '127.0.0.1:15000', keys: {keys}}}}}\n", "operators show the keys"),
    ):
        file.write_text(text)
        assert main(["admin-token"]) == 1
        assert why in capsys.readouterr().err
