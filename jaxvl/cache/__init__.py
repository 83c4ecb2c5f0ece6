"""Encoded images and texts, kept: before the bridge, everything depends on one modality only."""

from jaxvl.cache.api import (
    CachedModel,
    PrimedStates,
    answer,
    encode_images,
    encode_texts,
    fingerprint,
    fuse,
    layout,
    prime_images,
    prime_texts,
)
from jaxvl.cache.building import Built, build_store
from jaxvl.cache.files import StoreError
from jaxvl.cache.fingerprint import Fingerprint
from jaxvl.cache.records import Layout
from jaxvl.cache.store import FingerprintError, States, Store

__all__ = [
    "Built", "CachedModel", "Fingerprint", "FingerprintError", "Layout", "PrimedStates", "States", "Store",
    "StoreError", "answer", "build_store", "encode_images", "encode_texts", "fingerprint", "fuse", "layout",
    "prime_images", "prime_texts",
]  # fmt: skip
