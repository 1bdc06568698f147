"""Logs: as text for people or as JSON, one object a line, for machines.

Neither headers nor query strings are ever logged, and so no secret is that came where secrets belong.
"""

import logging
import logging.config
from enum import StrEnum
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS, merge_record_extra
from pythonjsonlogger.msgspec import MsgspecFormatter

from trillion_serve.gateway.observability.record import RequestRecord
from trillion_serve.request_context import request_id, trace_headers

access_logger = logging.getLogger("trillion_serve.access")


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


def configure_logging(format: LogFormat = LogFormat.TEXT, level: str = "info") -> None:
    """Send the logs of this process to stderr.

    Args:
        format: of a line.
        level: least level of our own logs; those of libraries start at warnings.
    """
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"context": {"()": _Context}},
            "formatters": {"lines": {"()": JsonLines if format is LogFormat.JSON else TextLines}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines", "filters": ["context"]}},
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {"trillion_serve": {"level": level.upper()}},
        }
    )


class JsonLines(MsgspecFormatter):
    """``time``, ``level``, ``logger``, ``message``, and what else the line has; nothing that is None."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"], timestamp="time", rename_fields={"levelname": "level", "name": "logger"}
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """The line's fields."""
        return {name: value for name, value in log_data.items() if value is not None}


class TextLines(logging.Formatter):
    """A line for people, what else it has behind it as ``name=value``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without a traceback."""
        extra = merge_record_extra(record, {}, reserved=RESERVED_ATTRS)
        fields = " ".join(f"{name}={value}" for name, value in extra.items() if value is not None)
        return f"{super().formatMessage(record)} {fields}".rstrip()


class _Context(logging.Filter):
    """Adds the ids of the request that is being served."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything through."""
        record.request_id = request_id.get() or None
        # version-trace-span-flags
        traceparent = trace_headers.get().get("traceparent")
        record.trace_id = traceparent.split("-")[1] if traceparent else None
        return True


def log_access(record: RequestRecord, key_name: str | None, level: int) -> None:
    """Write the one line of a request that has ended.

    Args:
        record: the request.
        key_name: name of the API key that it came with.
        level: of the line.
    """
    if access_logger.isEnabledFor(level):
        access_logger.log(
            level, "%s %s %d", record.method, record.path, record.status, extra=access_fields(record, key_name)
        )


def access_fields(record: RequestRecord, key_name: str | None) -> dict[str, Any]:
    """What a request's line holds. Times are in seconds; what does not apply is None."""
    fields: dict[str, Any] = {
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "duration": round(record.duration, 6),
        "key": key_name,
        "model": record.model,
        "error": record.error_code,
        "client_gone": record.client_gone or None,
    }
    if record.answers:
        fields |= {
            "ttft": None if record.first_token is None else round(record.first_token, 6),
            "queued": None if record.queued is None else round(record.queued, 6),
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "reasoning_tokens": record.reasoning_tokens,
            "finish_reasons": record.finish_reasons,
            "interventions": record.interventions or None,
        }
    return fields
