"""What ``/metrics`` says, by name and labels."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Scrape:
    """One reading of an application's metrics."""

    def __init__(self, base_url: str) -> None:
        answer = httpx.get(f"{base_url}/metrics", timeout=10)
        answer.raise_for_status()
        self.samples: Samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    @property
    def names(self) -> set[str]:
        """The names of all samples."""
        return {name for name, _ in self.samples}

    def __call__(self, name: str, **labels: str) -> float | None:
        """The value of a sample; None if there is no such one."""
        return self.samples.get((name, frozenset(labels.items())))
