"""A base written behind a chain of deltas, beside the newest of them and in nobody's way.

The version stays what it is: manifest, delta and fingerprint are not touched. A second file with
the whole state is stored, read back and compared with the chain bit for bit; only then does
`base.json` name it, and readers start from there. A compaction that dies before leaves a file
that nobody reads and that the next one writes again under the same name.
"""

from __future__ import annotations

import hashlib

from headrace.declaration import DeliverySpec
from headrace.errors import IntegrityError
from headrace.line import states, tensors
from headrace.line.store import LineStore
from headrace.line.version import Stored, Version
from headrace.model.delta import same_bits
from headrace.sealed import sealed


def due(store: LineStore, version: Version, spec: DeliverySpec) -> bool:
    """Whether the deltas up to a version are more, or larger, than declared."""
    (base, _), *deltas = store.chain(version)
    size = sum(each.size for each, _ in deltas)
    whole = base.size if base.kind == "base" else _size_of_base(store, base)
    return len(deltas) >= spec.compact_after or size > spec.compact_share * whole


def compact(store: LineStore, version: Version) -> bool:
    """Store the whole state of a delta; False when it has one. Safe to repeat, and beside readers.

    Raises `IntegrityError` when what was stored does not read back as the chain's state.
    """
    chain = store.chain(version)
    if len(chain) == 1:
        return False
    state = states.restore(store.files, chain)
    raw = tensors.encode(state)
    digest = hashlib.sha256(raw).hexdigest()
    folder, file = f"versions/{version.version}", f"base-{digest[:16]}.safetensors.zst"
    store.files.replace(f"{folder}/{file}", raw)
    if not same_bits(states.read(store.files, Stored(f"{folder}/{file}", digest, True)), state):
        raise IntegrityError(
            f"{version.version}: the base that was written differs from its deltas; they stay in "
            "use; check the disk"
        )
    body = {"file": file, "sha256_of_file": digest, "size": len(raw)}
    return store.files.create(f"{folder}/base.json", sealed(body))


def _size_of_base(store: LineStore, version: Version) -> int:
    body = store.files.read_json(f"versions/{version.version}/base.json")
    return int(body["size"]) if body else version.size
