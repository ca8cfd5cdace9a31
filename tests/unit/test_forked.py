"""A forked program is what an executed one is, so that tests of one are tests of the other."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from tests.fixtures.forked import Begin, Process, executed, forked, run
from tests.fixtures.gateway import Gateway

CONFIG = "server: {listen: 127.0.0.1:0, metrics: 127.0.0.1:0}\nroutes: [{name: a, path: /, to: http://127.0.0.1:9}]\n"
both = pytest.mark.parametrize("begin", [executed, forked])


def told(begin: Begin, where: Path, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """(exit status, all that it said)"""
    with (where / "said").open("wb") as output, Path(os.devnull).open("rb") as nothing:
        process = begin(arguments, where, env, (nothing.fileno(), output.fileno(), output.fileno()))
    return process.wait(30), (where / "said").read_text()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="all are executed")
def test_it_is_forked(tmp_path: Path) -> None:
    with Gateway(CONFIG, tmp_path) as running:
        assert isinstance(running.process, Process)
        assert running.get("/status")[0] == 200
    with Gateway(CONFIG, tmp_path, {**os.environ, "PYTHONDEVMODE": "1"}) as running:
        assert isinstance(running.process, subprocess.Popen)


@both
def test_its_arguments_directory_environment_and_exit_status(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(CONFIG)
    assert told(begin, tmp_path, "check", "a.yaml") == (0, "a.yaml: fine\n")
    (tmp_path / "b.yaml").write_text(CONFIG + "providers: {one: {kind: openai, api_key: '${OF_A_TEST}'}}\n")
    assert told(begin, tmp_path, "check", "b.yaml", env={**os.environ, "OF_A_TEST": "here"}) == (0, "b.yaml: fine\n")
    status, said = told(begin, tmp_path, "check", "b.yaml")
    assert (status, "OF_A_TEST" in said) == (2, True)
    status, said = told(begin, tmp_path, "unheard-of")
    assert status == 2
    assert said.startswith("usage: tollhouse ")


def test_a_command_whose_streams_are_told_apart(tmp_path: Path) -> None:
    done = run(tmp_path, "hash-password", input="correct horse\n")
    assert (done.returncode, done.stdout.count("$argon2id$"), done.stderr) == (0, 1, "")
    (tmp_path / "bad.yaml").write_text("routs: []\n")
    done = run(tmp_path, "check", "bad.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean `routes`?" in done.stderr
    (tmp_path / "a.yaml").write_text(CONFIG)
    with pytest.raises(subprocess.TimeoutExpired):
        run(tmp_path, "serve", "a.yaml", seconds=0.1)


@both
def test_how_it_ends(begin: Begin, tmp_path: Path) -> None:
    one = Gateway(CONFIG, tmp_path, begin=begin)
    for number, status in ((signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -9)):
        one.start()
        process = one.process
        assert process is not None
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        assert one.stop(number) == status
        assert (process.wait(), process.poll(), process.returncode) == (status, status, status)
        process.kill()  # nobody else's
        assert not Path(f"/proc/{process.pid}").exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only there is seen what is open")
def test_what_is_open_and_where_it_stands(tmp_path: Path) -> None:
    seen = []
    for begin in (executed, forked):
        with Gateway(CONFIG, tmp_path, begin=begin) as running:
            at = Path(f"/proc/{running.pid}")
            state = dict(line.split(":\t", 1) for line in (at / "status").read_text().splitlines() if ":\t" in line)
            files = sorted(re.sub(r"\d+", "n", os.readlink(name)) for name in (at / "fd").iterdir())
            kept = ("Threads", "SigBlk", "SigIgn", "SigCgt", "Umask")
            seen.append((files, os.getpgid(running.pid), os.readlink(at / "cwd"), *(state[name] for name in kept)))
    assert seen[0] == seen[1]


def test_several_at_once(tmp_path: Path) -> None:
    all_of_them = []
    for number in range(6):
        (tmp_path / str(number)).mkdir()
        all_of_them.append(Gateway(CONFIG, tmp_path / str(number)))
    for one in all_of_them:
        one.start()
    assert len({one.pid for one in all_of_them}) == len({one.url for one in all_of_them}) == 6
    assert [one.stop() for one in all_of_them] == [0] * 6
