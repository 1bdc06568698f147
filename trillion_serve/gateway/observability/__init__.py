"""What can be known of the gateway from outside: request ids, logs, metrics and traces."""

from trillion_serve.gateway.observability.install import ObservabilityConfig, install
from trillion_serve.gateway.observability.logs import LogFormat, configure_logging

__all__ = ["LogFormat", "ObservabilityConfig", "configure_logging", "install"]
