"""Region features of images: stores of them, and readers of the layouts in which they are distributed.

`REGION_LAYOUTS` names every reader; `convert` makes a store of what it reads.
"""

from __future__ import annotations

from jaxvl.data.regions.files import StoreError
from jaxvl.data.regions.hdf5 import read_hdf5
from jaxvl.data.regions.layouts import Layout
from jaxvl.data.regions.lmdb_layout import read_lmdb
from jaxvl.data.regions.openvqa_npz import read_npz
from jaxvl.data.regions.store import RecordError, RegionStore, StoreWriter
from jaxvl.data.regions.tsv import read_butd_tsv, read_lxmert_tsv

REGION_LAYOUTS: dict[str, Layout] = {
    "openvqa_npz": read_npz,
    "butd_tsv": read_butd_tsv,
    "lxmert_tsv": read_lxmert_tsv,
    "hdf5": read_hdf5,
    "lmdb": read_lmdb,
}

__all__ = ["REGION_LAYOUTS", "RecordError", "RegionStore", "StoreError", "StoreWriter"]
