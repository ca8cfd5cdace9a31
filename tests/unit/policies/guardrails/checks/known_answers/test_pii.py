"""How good the patterns for personal data are, kind by kind: printed, and held to what was reached."""

import re
from collections import Counter
from pathlib import Path

from tollhouse.wire.guard.catalogue import groups, named
from tollhouse.wire.guard.patterns import PatternSet

_LABEL = re.compile(r"\{([a-z_0-9]+):([^}]*)\}")


def test_how_much_is_found_and_how_much_of_it_rightly() -> None:
    lines = (Path(__file__).parent / "pii.txt").read_text("utf-8").splitlines()
    texts = [line for line in lines if line and not line.startswith("#")]
    patterns = PatternSet(named(["pii"]))
    right: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    notes = []
    for line in texts:
        text, wanted = _LABEL.sub(r"\2", line), _LABEL.findall(line)
        found = [(patterns.rules[one.rule].name, text[one.begin : one.end]) for one in patterns.find(text)]
        for one in wanted:
            (right if one in found else missed)[one[0]] += 1
        for one in found:
            wrong[one[0]] += one not in wanted
        notes += [f"  missed {kind}: {value!r} in {text!r}" for kind, value in wanted if (kind, value) not in found]
        notes += [f"  wrongly {kind}: {value!r} in {text!r}" for kind, value in found if (kind, value) not in wanted]
    print(f"\npersonal data in {len(texts)} texts")
    print("  kind               there  found  recall  wrongly  precision")
    kinds = [*groups()["pii"], "all"]
    for count in (right, missed, wrong):
        count["all"] = count.total()
    for kind in kinds:
        there, found = right[kind] + missed[kind], right[kind]
        precision = found / ((found + wrong[kind]) or 1)
        print(f"  {kind:<18}{there:6d}{found:7d}{found / there:8.3f}{wrong[kind]:9d}{precision:11.3f}")
        assert found / there >= 0.8, kind
        assert precision >= 0.8, kind
    print("\n".join(notes))
    assert len(texts) >= 300
    assert right["all"] / (right["all"] + missed["all"]) >= 0.98
    assert right["all"] / (right["all"] + wrong["all"]) >= 0.98
