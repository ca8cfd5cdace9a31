"""What a scraper reads of an exposition."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

OM = "application/openmetrics-text"


def samples(body: bytes, *, openmetrics: bool = False) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    parse = parse_openmetrics if openmetrics else parse_text
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value for family in parse(body.decode()) for s in family.samples
    }


def value(body: bytes, name: str, **labels: str) -> float:
    return samples(body)[name, tuple(sorted(labels.items()))]
