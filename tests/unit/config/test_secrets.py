"""References, and that their values stay out of messages."""

from pathlib import Path

import pytest

from tollhouse.config.secrets import ABSENT, Secrets, digest


def resolve(text: str, env: dict[str, str], directory: Path = Path("/")) -> tuple[str, list[str]]:
    said: list[str] = []
    return Secrets(env, str(directory)).substitute(text, said.append), said


@pytest.mark.parametrize(
    "text,becomes",
    [
        ("${A}", "alpha"),
        ("Bearer ${A}-${A}.", "Bearer alpha-alpha."),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),  # an escape first, and what follows it is text
        ("$A ${B} $", "$A ${A} $"),  # a value is not looked into again
        ("no reference", "no reference"),
        ("${_x1}", "ok"),
    ],
)
def test_references_are_replaced(text: str, becomes: str) -> None:
    assert resolve(text, {"A": "alpha", "B": "${A}", "_x1": "ok"}) == (becomes, [])


@pytest.mark.parametrize(
    "text,said",
    [
        ("${NOPE}", "the environment variable `NOPE` is not set"),
        ("${EMPTY}", "the environment variable `EMPTY` is empty"),
        ("${A", "`${` is not closed; write ${NAME}, or $${ for a literal ${"),
        ("${A:-x}", "`${...}` holds neither a name nor a file"),
        ("${}", "`${...}` holds neither a name nor a file"),
        ("${ A }", "`${...}` holds neither a name nor a file"),
        ("${file:}", "`${file:}` names no file"),
        ("${file:missing}", "the file `missing` cannot be read: No such file or directory"),
        ("${file:.}", "the file `.` cannot be read: it is not a file"),
        ("${file:empty}", "the file `empty` is empty"),
        ("${file:binary}", "the file `binary` is not UTF-8 text"),
        ("${file:large}", "the file `large` is larger than 1 MiB, so it is no secret"),
        ("${file:a\0b}", "the file `a\0b` cannot be read: it is not the name of a file"),
    ],
)
def test_what_cannot_be_resolved_is_said_and_left(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"x" * ((1 << 20) + 1))
    result, found = resolve(text, {"A": "alpha", "EMPTY": ""}, tmp_path)
    assert result == text
    (message,) = found
    assert message.startswith(said)


def test_files_are_relative_lose_their_last_newline_and_are_remembered(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    secrets = Secrets({}, str(tmp_path))
    said: list[str] = []
    assert secrets.substitute(f"${{file:key}} ${{file:{tmp_path}/key}}", said.append) == "s3cret s3cret"
    secrets.substitute("${file:gone} ${file:gone}", said.append)
    assert len(said) == 2
    assert secrets.files == {str(tmp_path / "key"): digest(b"s3cret\n"), str(tmp_path / "gone"): ABSENT}


def test_values_are_taken_out_of_messages() -> None:
    secrets = Secrets({"KEY": "sk-abc", "LONGER": "sk-abcdef", "ODD": "a'\\\nb", "ONE": "7"}, "/")
    said: list[str] = []
    for name in ("KEY", "LONGER", "ODD", "ONE"):
        secrets.substitute(f"${{{name}}}", said.append)
    assert secrets.redact("not a key: 'sk-abcdef', and sk-abc") == "not a key: '${LONGER}', and ${KEY}"
    assert "a'" not in secrets.redact(f"odd: {'a' + chr(39) + chr(92) + chr(10) + 'b'!r}").replace("${ODD}", "")
    # a short value would be found in half of all words, so it only counts where it was
    assert secrets.redact("should be at most 7") == "should be at most 7"
    assert secrets.redact("not a duration: '7'", "7") == "not a duration: '${ONE}'"
    assert "sk-abc" not in repr(secrets)
