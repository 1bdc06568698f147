"""A gateway in a process of its own."""

from dataclasses import dataclass

from openai import OpenAI

from support.local_service import LocalService


@dataclass(frozen=True)
class GatewayProcess:
    """A gateway that runs.

    Attributes:
        service: how it runs.
        url: its root.
        key: an API key that it knows.
    """

    service: LocalService
    url: str
    key: str

    def client(self, key: str | None = None) -> OpenAI:
        """The real client, without retries; with the gateway's key unless another is given."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0, timeout=60)
