"""Recipes -> shards -> seeded global order -> decoded batches."""

from jepa.data.batch import Batch, derive_accumulation
from jepa.data.clipdata import eval_clips
from jepa.data.loader import Loader, centre_batches, eval_batches, make_loader
from jepa.data.manifest import Manifest, Split
from jepa.data.order import Order
from jepa.data.samples import TrainData
from jepa.data.windows import eval_windows, read_episode, window_starts

__all__ = [
    "Batch",
    "Loader",
    "Manifest",
    "Order",
    "Split",
    "TrainData",
    "centre_batches",
    "derive_accumulation",
    "eval_batches",
    "eval_clips",
    "eval_windows",
    "make_loader",
    "read_episode",
    "window_starts",
]
