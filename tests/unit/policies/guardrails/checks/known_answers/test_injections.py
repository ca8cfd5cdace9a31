"""How good the patterns against prompt injection are, printed, and held to what was reached."""

from tests.unit.policies.guardrails.checks.known_answers.injections import (
    ATTACKS,
    HARMLESS,
    HARMLESS_HELD_OUT,
    HELD_OUT,
)

from tollhouse.wire.guard.injection import injections
from tollhouse.wire.guard.patterns import PatternSet


def test_how_much_is_found_and_how_much_of_it_rightly() -> None:
    patterns = PatternSet([rule for rules in injections().values() for rule in rules])
    missed = [text for text in ATTACKS if not patterns.find(text)]
    missed_of_held_out = [text for text in HELD_OUT if not patterns.find(text)]
    wrong = [text for text in HARMLESS if patterns.find(text)]
    wrong_of_held_out = [text for text in HARMLESS_HELD_OUT if patterns.find(text)]
    print("\nprompt injection      attacks  found  recall   harmless  wrongly found  precision")
    figures = []
    for title, attacks, lost, harmless, mistaken in (
        ("known forms", ATTACKS, missed, HARMLESS, wrong),
        ("held out", HELD_OUT, missed_of_held_out, HARMLESS_HELD_OUT, wrong_of_held_out),
    ):
        found = len(attacks) - len(lost)
        recall, precision = found / len(attacks), found / (found + len(mistaken))
        figures.append((recall, precision))
        print(
            f"  {title:<18}{len(attacks):9d}{found:7d}{recall:8.3f}{len(harmless):11d}{len(mistaken):15d}"
            f"{precision:11.3f}"
        )
    for title, texts in (
        ("missed", missed),
        ("missed, held out", missed_of_held_out),
        ("wrongly found", wrong),
        ("wrongly found, held out", wrong_of_held_out),
    ):
        for text in texts:
            print(f"  {title}: {text}")
    (recall, precision), (recall_of_held_out, precision_of_held_out) = figures
    assert recall >= 0.95
    assert precision >= 0.95
    assert recall_of_held_out >= 0.7
    assert precision_of_held_out >= 0.85
