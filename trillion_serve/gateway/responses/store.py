"""Responses that are kept for a while, in memory: each gateway process has its own."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TTLCache

from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.schema.response_items import Item
from trillion_serve.gateway.schema.responses_response import ResponseObject

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreSettings:
    """How much is kept.

    Attributes:
        count: most responses.
        bytes: most bytes of them, as JSON, with all that went in before them.
        seconds: how long each is kept.
    """

    count: int = 10_000
    bytes: int = 256 * 2**20
    seconds: float = 24 * 3600.0


@dataclass(frozen=True)
class StoredResponse:
    """A response, and everything that the model was shown before it but for the instructions."""

    response: ResponseObject
    context: tuple[Item, ...]

    @property
    def conversation(self) -> tuple[Item, ...]:
        """What a response that follows this one is shown."""
        return (*self.context, *self.response.output)

    @property
    def bytes(self) -> int:
        """Its size as JSON."""
        parts = (self.response, *self.context)
        return sum(len(part.model_dump_json().encode()) for part in parts)


class ResponseStore:
    """Keeps responses by their owner and id, until they are too old, or too many or too large together.

    What makes room for others is what nobody has asked for in the longest time.

    Args:
        settings: how much is kept.
        timer: a clock that is never set back, in seconds.
    """

    def __init__(self, settings: StoreSettings | None = None, timer: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings or StoreSettings()
        # An entry counts as at least its share of all bytes, so that one bound holds for both.
        self._least = self._settings.bytes // self._settings.count
        self._kept: TTLCache[tuple[str | None, str], StoredResponse] = TTLCache(
            self._settings.bytes, self._settings.seconds, timer, getsizeof=lambda kept: max(kept.bytes, self._least)
        )

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, owner: str | None, stored: StoredResponse) -> None:
        """Keep a response. One that is larger than all that may be kept is not."""
        try:
            self._kept[owner, stored.response.id] = stored
        except ValueError:
            logger.warning("response %s is not kept: it is larger than the whole store", stored.response.id)

    def get(self, owner: str | None, response_id: str) -> StoredResponse:
        """A response of this owner.

        Raises:
            ApiError: there is none, or it is no longer kept.
        """
        try:
            return self._kept[owner, response_id]
        except KeyError:
            raise ApiError(
                f"there is no response {response_id!r}: it has expired, was deleted, or was never stored",
                status=404,
                code="response_not_found",
                param="response_id",
            ) from None

    def delete(self, owner: str | None, response_id: str) -> None:
        """Forget a response.

        Raises:
            ApiError: there is none.
        """
        self.get(owner, response_id)
        del self._kept[owner, response_id]
