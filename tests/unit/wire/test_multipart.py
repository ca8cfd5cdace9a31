"""multipart/form-data: what is read, what is refused, and that nothing else changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.multipart import read, rewritten


def part(name: str, value: bytes, more: str = "", *, fields: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n{fields}\r\n'.encode() + value + b"\r\n"


SOUND = part("file", b"\x00\xff\r\nRIFF--c\r\n\r\n", '; filename="a.wav"', fields="Content-Type: audio/wav\r\n")
BODY = part("model", b"whisper-1") + SOUND + part("prompt", b"") + b"--b--\r\n"


def test_the_parts() -> None:
    form = read(BODY)
    assert form.content_type == b"multipart/form-data; boundary=b"
    assert [(p.name, p.file, BODY[p.begin : p.end]) for p in form.parts] == [
        ("model", False, b"whisper-1"),
        ("file", True, b"\x00\xff\r\nRIFF--c\r\n\r\n"),
        ("prompt", False, b""),
    ]
    assert BODY[form.close :] == b"--b--\r\n"


@pytest.mark.parametrize(
    "boundary, shown",
    [
        (b"----WebKitFormBoundary7MA4YWxkTrZu0gW", b"----WebKitFormBoundary7MA4YWxkTrZu0gW"),
        (b"------------------------d74496d66958873e", b"------------------------d74496d66958873e"),
        (b"x/y:z", b'"x/y:z"'),
    ],
)
def test_the_boundary_is_what_the_body_begins_with(boundary: bytes, shown: bytes) -> None:
    body = BODY.replace(b"--b", b"--" + boundary).replace(b"--c", b"--")
    assert read(body).content_type == b"multipart/form-data; boundary=" + shown


@pytest.mark.parametrize(
    "disposition, name, file",
    [
        ("form-data; name=plain", "plain", False),
        ('FORM-DATA;name="a b"', "a b", False),
        ("form-data; name=\"f\"; filename*=UTF-8''%e2%82%ac", "f", True),
        ('form-data; filename="a\\"b;c.wav"; name="f"', "f", True),
        ('form-data; name="ü"', "ü", False),
        ('form-data; name="timestamp_granularities[]"', "timestamp_granularities[]", False),
    ],
)
def test_dispositions(disposition: str, name: str, file: bool) -> None:
    body = f"--b\r\ncontent-disposition: {disposition}\r\n\r\nx\r\n--b--".encode()
    [only] = read(body).parts
    assert (only.name, only.file) == (name, file)


@pytest.mark.parametrize(
    "body, said",
    [
        (b"", "must begin with"),
        (b'{"model":"m"}', "must begin with"),
        (b"\r\n" + BODY, "must begin with"),
        (BODY.replace(b"\r\n", b"\n"), "must begin with"),
        (b"--" + b"b" * 71 + b"\r\n", "must begin with"),
        (b"--b\r\n", "last boundary"),
        (b"--b\r\n--b--", "no header fields"),
        (BODY[:-6], "last boundary"),
        (BODY + b"--b\r\n", "after its last boundary"),
        (BODY + b"evil", "after its last boundary"),
        (part("a", b"x--b\r\n") + b"--b--", "middle of a line"),
        (part("a", b"x\n--b\r\n") + b"--b--", "middle of a line"),
        (part("a", b"x\r\n--bc\r\n") + b"--b--", "more than the end of its line"),
        (part("a", b"x\r\n--b \r\n") + b"--b--", "more than the end of its line"),
        (b"--b\r\n\r\nx\r\n--b--", "no header fields"),
        (b"--b\r\nContent-Type: a/b\r\n\r\nx\r\n--b--", "no Content-Disposition"),
        (b"--b\r\nContent-Disposition: form-data; name=a\r\n--b--", "no header fields"),
        (b"--b\r\nContent-Disposition: attachment; name=a\r\n\r\n\r\n--b--", "no form-data"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\n\r\n--b--", "no name"),
        (b"--b\r\nContent-Disposition: form-data; name*=utf-8''m\r\n\r\n\r\n--b--", "no name"),
        (b"--b\r\nContent-Disposition: form-data; name=a; name=b\r\n\r\n\r\n--b--", "malformed"),
        (b'--b\r\nContent-Disposition: form-data; name="a\r\n\r\n\r\n--b--', "malformed"),
        (b'--b\r\nContent-Disposition: form-data; name="a\\""\r\n\r\n\r\n--b--', "backslash"),
        (b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n\r\n--b--', "not UTF-8"),
        (b"--b\r\nContent-Disposition : form-data; name=a\r\n\r\n\r\n--b--", "malformed"),
        (b"--b\r\nContent-Disposition: form-data;\r\n name=a\r\n\r\n\r\n--b--", "malformed"),
        (b"--b\r\nContent-Disposition: form-data; name=a\nX: b\r\n\r\n\r\n--b--", "malformed"),
        (
            b"--b\r\nContent-Disposition: form-data; name=a\r\nContent-Disposition: form-data; name=b\r\n\r\n\r\n--b--",
            "two fields",
        ),
        (part("a", b"eA==", fields="Content-Transfer-Encoding: base64\r\n") + b"--b--", "Content-Transfer-Encoding"),
        (part("a", b"", fields="X: " + "y" * 9000 + "\r\n") + b"--b--", "no header fields"),
        (part("a", b"") * 257 + b"--b--", "more than 256"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(body)


def test_only_what_changes_is_written() -> None:
    form = read(BODY)
    assert rewritten(BODY, form, {}, ()) == BODY
    assert rewritten(BODY, form, {"model": b"m"}, ()) == BODY.replace(b"whisper-1", b"m")
    assert rewritten(BODY, form, {"model": None}, ()) == SOUND + part("prompt", b"") + b"--b--\r\n"
    assert rewritten(BODY, form, {"file": b"never"}, ()) == BODY
    more = rewritten(BODY, form, {"prompt": b"p"}, [("language", b"en")])
    assert more == (
        part("model", b"whisper-1")
        + SOUND
        + part("prompt", b"p")
        + b'--b\r\ncontent-disposition: form-data; name="language"\r\n\r\nen\r\n--b--\r\n'
    )
    assert [p.name for p in read(more).parts] == ["model", "file", "prompt", "language"]


@pytest.mark.parametrize(
    "values, more",
    [
        ({"model": b"x\r\n--b\r\n"}, []),
        ({}, [("a", b"--b--")]),
        ({}, [('a"', b"")]),
        ({}, [("a\r\nX: y", b"")]),
        ({}, [("a\\", b"")]),
    ],
)
def test_a_value_cannot_become_a_part(values: dict[str, bytes], more: list[tuple[str, bytes]]) -> None:
    with pytest.raises(ValueError, match=r"cannot be the name|stands in a value"):
        rewritten(BODY, read(BODY), values, more)


@given(st.lists(st.tuples(st.sampled_from(["a", "model", "file"]), st.binary(max_size=40), st.booleans()), min_size=1))
def test_what_is_written_is_read(parts: list[tuple[str, bytes, bool]]) -> None:
    parts = [(name, value.replace(b"--b", b"x"), file) for name, value, file in parts]
    more = ['; filename="x"' if file else "" for _, _, file in parts]
    body = b"".join(part(n, v, m) for (n, v, _), m in zip(parts, more, strict=True)) + b"--b--\r\n"
    form = read(body)
    assert [(p.name, body[p.begin : p.end], p.file) for p in form.parts] == parts
    assert rewritten(body, form, {}, ()) == body


@given(st.data())
def test_mutations_raise_nothing_else(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(BODY)))
    end = data.draw(st.integers(at, min(at + 5, len(BODY))))
    body = BODY[:at] + data.draw(st.binary(max_size=4)) + BODY[end:]
    try:
        form = read(body)
    except ValueError:
        return
    assert rewritten(body, form, {}, ()) == body
