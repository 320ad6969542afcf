"""Names of a line: each is declared once, before it is used, and of a kind that fits its use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from headrace.declaration.features import RequestFeature, WindowFeature
from headrace.declaration.model import ModelSpec

RESERVED: Final = frozenset(
    {"event", "impression_id", "request_id", "event_at", "arrival_at", "value", "offset"}
    | {"event_timestamp", "label", "request_at", "served_at", "score", "version", "arm"}
    | {"propensity", "fallback"}
)
"""Names that Headrace needs for itself in events, samples and served rows."""

OF_A_SAMPLE: Final = (
    *("impression_id", "request_id", "label", "revision", "score", "sample_key"),
    *("label_of_impression", "label_rate_of_odd_stretch"),
)
"""What an expectation may ask about beside a model's inputs."""


class Names:
    """The names that a line declared so far, each with the kind of its values.

    That of a column is its type, that of a window what `LineSpec.window_kind` says, that of a
    request feature what it produces. Every method raises `ValueError` with name and remedy.
    """

    def __init__(self, columns: Mapping[str, str], engagement: str) -> None:
        self._columns = columns
        self._engagement = engagement
        self._kinds = dict(columns)
        self._produced: dict[str, str] = {}

    def add_window(self, feature: WindowFeature, kind: str) -> None:
        """Declare a window over declared columns and events."""
        for name in feature.key:
            if self._columns.get(name) not in ("string", "int"):
                raise ValueError(
                    f"windows.{feature.name}: key {name!r} must be a declared string or int column"
                )
        if feature.event not in ("impression", self._engagement):
            raise ValueError(
                f"windows.{feature.name}: event {feature.event!r} is neither 'impression' nor the "
                f"engagement {self._engagement!r}"
            )
        any_kind = feature.aggregate in ("distinct", "last")
        kinds = ("string", "int") if any_kind else ("int",)
        if feature.column != "value" and self._columns.get(feature.column) not in kinds:
            raise ValueError(
                f"windows.{feature.name}: column {feature.column!r} must be 'value' or "
                + ("a string or int column" if any_kind else "an int column")
                + (" (sums are of integers)" if feature.aggregate == "sum" else "")
            )
        self._declare(feature.name, kind)

    def add_request(self, request: RequestFeature) -> None:
        """Declare a request feature over names that stand above it."""
        for name in request.inputs:
            if name not in self._kinds:
                raise ValueError(
                    f"request_features.{request.name}: {name!r} is not a column, a window "
                    "or an earlier request feature; declare it above"
                )
            _check_kind(request, name, self._kinds[name])
        self._declare(request.name, request.produces)
        self._produced[request.name] = request.produces

    def check_inputs(self, model: ModelSpec) -> None:
        """A model learns ids and numbers, and both are made by request features."""
        for kind, names in (("id", model.categorical), ("number", model.numeric)):
            for name in names:
                if self._produced.get(name) != kind:
                    raise ValueError(
                        f"model: {name!r} is not a request feature that produces a {kind}; wrap it "
                        "(hash, cross, bucketize … give ids; number, log1p, ratio give numbers)"
                    )

    def leave_to_conversions(self, columns: Iterable[str]) -> None:
        """None of these may be declared."""
        for name in sorted(self._kinds.keys() & columns):
            raise ValueError(
                f"{name!r} is a column of samples with conversions; choose another name"
            )

    def _declare(self, name: str, kind: str) -> None:
        if name in self._kinds or name in RESERVED:
            raise ValueError(f"{name!r} is declared twice or reserved; choose another name")
        self._kinds[name] = kind


def _check_kind(request: RequestFeature, name: str, kind: str) -> None:
    if (request.kind == "since") != (kind == "moment"):
        raise ValueError(
            f"request_features.{request.name}: {name!r} is a {kind}; kind 'since', and no "
            "other, takes a window with aggregate 'last_at'"
        )
    if request.kind in ("hash", "cross") and kind in ("float", "number"):
        raise ValueError(
            f"request_features.{request.name}: {name!r} is a {kind}, which has no identity; "
            "bucketize it first"
        )
    if request.kind in ("bucketize", "ratio", "mean", "number", "log1p") and kind == "string":
        raise ValueError(
            f"request_features.{request.name}: {name!r} is text, not a number; hash it"
        )
