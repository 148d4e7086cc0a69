"""Expert memory: the slow tier, the link, the device arena, and which experts stay resident in it."""

from specmoe.offload.arena import ExpertArena
from specmoe.offload.device import Device, open_device
from specmoe.offload.link import Link
from specmoe.offload.placement import Placement, make_placement
from specmoe.offload.prefetch import Prefetcher
from specmoe.offload.residency import Residency
from specmoe.offload.slow_tier import SlowTier
from specmoe.offload.sources import DiskSource, HostSource
from specmoe.offload.store import ExpertStore

__all__ = [
    "Device",
    "DiskSource",
    "ExpertArena",
    "ExpertStore",
    "HostSource",
    "Link",
    "Placement",
    "Prefetcher",
    "Residency",
    "SlowTier",
    "make_placement",
    "open_device",
]
