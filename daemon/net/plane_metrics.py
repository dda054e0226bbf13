"""What both planes say of themselves on `/metrics`: which mfmd, which settings, which connections they ended."""

import hashlib
import platform
from importlib import metadata

from prometheus_client import CollectorRegistry, ProcessCollector

from configs.settings import Settings
from daemon.net.listening import excess_counter
from daemon.runtime.metric_table import MetricTable, gauge


class PlaneMetrics(MetricTable):
    """Base of the table of a plane."""

    build = gauge("mfmd_build_info", "Version of mfmd and of Python", version=(), python=())
    settings_hash = gauge("mfmd_config_hash_info", "SHA-256 of the settings in force, secrets masked", sha256=())
    excess = excess_counter()

    def __init__(self, registry: CollectorRegistry, settings: Settings) -> None:
        super().__init__(registry)
        ProcessCollector(registry=registry)
        self.build.labels(metadata.version("mfmd"), platform.python_version()).set(1)
        self.show(settings)

    def show(self, settings: Settings) -> None:
        """Expose the settings in force."""
        digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()
        self.settings_hash.clear()
        self.settings_hash.labels(digest).set(1)
