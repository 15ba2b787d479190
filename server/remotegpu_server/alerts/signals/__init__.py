"""What rules can be about: each signal gives one reading of each object that it knows.

A value that nobody measured is ``None``: it neither fires nor resolves anything.
"""

from remotegpu_server.alerts.signals import gpus, hosts, platform, work  # noqa: F401  they declare theirs
from remotegpu_server.alerts.signals.reading import SIGNALS, Reading, Signal, View

__all__ = ["SIGNALS", "Reading", "Signal", "View"]
