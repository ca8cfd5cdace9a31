"""Units, files and secrets of Specs."""

from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError

from tollhouse.core.spec import Duration, File, Reading, Size, Spec


class Inner(Spec):
    word: str = Field(default="w", description="")


class Example(Spec):
    wait: Duration = 5.0
    size: Size = 1
    file: File | None = None
    secret: SecretStr | None = None
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    fields: dict[str, SecretStr] = Field(default={})


@pytest.mark.parametrize(
    "written,seconds", [("250ms", 0.25), ("5s", 5.0), ("1.5m", 90.0), ("1h", 3600.0), (" 2 d ", 172_800.0), (3.5, 3.5)]
)
def test_durations(written: object, seconds: float) -> None:
    assert Example.model_validate({"wait": written}).wait == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["5", "s", "-5s", "5 weeks", "", 5, True, None, "1e3s"])
def test_what_is_no_duration(written: object) -> None:
    with pytest.raises(ValidationError, match="not a duration"):
        Example.model_validate({"wait": written})


def test_a_number_from_a_file_is_no_duration() -> None:
    with pytest.raises(ValidationError, match="write a number and a unit"):
        Example.model_validate({"wait": 3.5}, context=Reading("/"))


@pytest.mark.parametrize(
    "written,size", [(7, 7), ("7", 7), ("64KiB", 65_536), ("10MB", 10_000_000), ("1 GiB", 1 << 30)]
)
def test_sizes(written: object, size: int) -> None:
    assert Example.model_validate({"size": written}).size == size


@pytest.mark.parametrize("written", [-1, True, 1.5, "1.5MiB", "1TB", ""])
def test_what_is_no_size(written: object) -> None:
    with pytest.raises(ValidationError, match="not a size"):
        Example.model_validate({"size": written})


def test_files_are_beside_the_configuration_and_collected(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("x")
    reading = Reading(str(tmp_path))
    assert Example.model_validate({"file": "a.pem"}, context=reading).file == str(tmp_path / "a.pem")
    with pytest.raises(ValidationError, match="there is no file"):
        Example.model_validate({"file": "b.pem"}, context=reading)
    assert reading.files == {str(tmp_path / "a.pem"), str(tmp_path / "b.pem")}
    assert Example(file="b.pem").file == "b.pem"


def test_a_repr_has_no_values_that_could_be_secrets() -> None:
    example = Example(
        file="f-secret", secret=SecretStr("s-secret"), fields={"k": SecretStr("d-secret")}, inner=Inner(word="i-secret")
    )
    assert "secret=" in repr(example)
    assert "-secret" not in repr(example)
    assert "-secret" not in str(example)


def test_a_fingerprint_is_of_all_settings_secrets_included() -> None:
    def made(secret: str = "a", field: str = "b", word: str = "c") -> str:
        return Example(secret=SecretStr(secret), fields={"k": SecretStr(field)}, many=(Inner(word=word),)).fingerprint()

    assert made() == made()
    assert len({made(), made(secret="x"), made(field="x"), made(word="x")}) == 4
