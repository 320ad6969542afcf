"""Which declaration a state belongs to. NumPy only."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from headrace.declaration import ModelSpec


def identity_of(spec: ModelSpec, seed: int, conversion: bool) -> NDArray[np.uint8]:
    """A digest (32,) of the declared shape and the seed: equal where a state fits."""
    network: tuple[object, ...] = ()
    if spec.family != "ftrl":
        network = (spec.embedding_dim, spec.hidden)
    if spec.wide:
        network += (spec.wide,)
    if spec.ids == "dynamic":
        network += (spec.ids, spec.admit_after, spec.expire_after)
    if spec.family == "dcn":
        network += (spec.cross_layers, spec.cross_rank)
    if conversion:
        network += ("conversion",)
    shape = (spec.family, spec.categorical, spec.numeric, spec.table_bits, network, seed)
    digest = hashlib.sha256(repr(shape).encode()).digest()
    return np.frombuffer(digest, np.uint8)
