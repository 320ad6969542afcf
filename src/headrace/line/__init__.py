"""Versions of a line and the pointer to its champion, on any fsspec path.

    <root>/versions/v000001/claim.json              number taken, by exclusive creation
    <root>/versions/v000001/state.safetensors.zst   whole state (base) or delta to the parent
    <root>/versions/v000001/manifest.json           the `Version`, written last: it is the commit
    <root>/versions/v000001/{evidence,verdict}.json
    <root>/versions/v000001/base.json               of a delta: names a whole state beside it
    <root>/versions/v000001/{pin,pruned}.json       keeps its files; says that they are gone
    <root>/champion/00000001.json                   one `Champion` a generation, never rewritten
    <root>/race/00000001.json                       one state of the race a generation (`races`)

The newest generation is the champion. Advancing is compare-and-swap: whoever creates the next
generation's file first has won; the other gets a `ConflictError`. A number claimed by a
publisher that died stays unused. Every JSON file carries a SHA-256 of its content, every state
file has one in its manifest; bytes that do not match raise `IntegrityError`.
"""

from headrace.line.store import LineStore
from headrace.line.version import About, Champion, Version

__all__ = ["About", "Champion", "LineStore", "Version"]
