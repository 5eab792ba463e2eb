"""The store: objects, records, refs, locks; see `Store`."""

from replaygen.store.du import DuReport
from replaygen.store.facade import Store
from replaygen.store.gc import GcReport
from replaygen.store.keys import canonical, task_key
from replaygen.store.objects import OutputRef
from replaygen.store.purge import PurgeReport
from replaygen.store.records import Counts, OutputObject, Record
from replaygen.store.shards import Shard, write_shard
from replaygen.store.status import CacheStatus
from replaygen.store.tombstones import Tombstone
from replaygen.store.verify import Damage, VerifyReport
from replaygen.store.why import WhyReport

__all__ = [
    "CacheStatus",
    "Counts",
    "Damage",
    "DuReport",
    "GcReport",
    "OutputObject",
    "OutputRef",
    "PurgeReport",
    "Record",
    "Shard",
    "Store",
    "Tombstone",
    "VerifyReport",
    "WhyReport",
    "canonical",
    "task_key",
    "write_shard",
]
