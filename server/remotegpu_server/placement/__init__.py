"""Where a request runs: pure, from a request and a fleet to a choice or a refusal with numbers.

The database has the last word (partial unique indexes, row locks); this package only proposes. Two requests
that are shown the same fleet propose the same GPU, and one of them loses at the INSERT.
"""

from remotegpu_server.placement.changes import Change, smallest_changes
from remotegpu_server.placement.choosing import Ahead, Choice, choose, choose_all
from remotegpu_server.placement.fleet import Fleet
from remotegpu_server.placement.inventory import GpuInventory, Hold, HostInventory
from remotegpu_server.placement.mix import Kind, Mix
from remotegpu_server.placement.refusals import Refusal
from remotegpu_server.placement.request import Home, Request
from remotegpu_server.placement.words import gib

__all__ = [
    "Ahead",
    "Change",
    "Choice",
    "Fleet",
    "GpuInventory",
    "Hold",
    "Home",
    "HostInventory",
    "Kind",
    "Mix",
    "Refusal",
    "Request",
    "choose",
    "choose_all",
    "gib",
    "smallest_changes",
]
