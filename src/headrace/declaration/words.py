"""Declared features in words, as `headrace features describe` tells them."""

from __future__ import annotations

from headrace.declaration.features import RequestFeature, WindowFeature
from headrace.declaration.line import LineSpec

_UNITS = (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000))


def in_words(spec: LineSpec, feature: WindowFeature | RequestFeature) -> str:
    """What a feature of a line is, in one phrase."""
    if isinstance(feature, WindowFeature):
        return _window_in_words(feature)
    return _request_in_words(spec, feature)


def write_duration(duration_us: int) -> str:
    """Microseconds in the largest unit that says them in whole numbers, such as `10m`."""
    for unit, size in _UNITS:
        if duration_us % size == 0:
            return f"{duration_us // size}{unit}"
    return f"{duration_us // 1_000}ms"


def _window_in_words(feature: WindowFeature) -> str:
    nth = "newest" if feature.rank == 1 else f"{feature.rank}. newest"
    what = {
        "count": "number",
        "sum": f"sum of {feature.column}",
        "min": f"smallest {feature.column}",
        "max": f"largest {feature.column}",
        "distinct": f"number of different values of {feature.column}",
        "last": f"{nth} {feature.column}",
        "last_at": "time of the newest",
    }[feature.aggregate]
    over = f"{feature.event}s" if feature.aggregate != "last_at" else feature.event
    join = "of" if feature.aggregate in ("count", "last_at") else "over"
    join = "" if feature.aggregate == "last_at" else f" {join}"
    return (
        f"{what}{join} {over} with the same {', '.join(feature.key)} that became known in the "
        f"{write_duration(feature.window)} before"
    )


def _request_in_words(spec: LineSpec, feature: RequestFeature) -> str:
    of = feature.inputs
    match feature.kind:
        case "hour_of_day" | "day_of_week":
            text = f"{feature.kind.replace('_', ' ')} of the request in {spec.timezone}"
        case "hash" | "cross":
            text = f"63-bit id of {' with '.join(of)}"
        case "bucketize":
            text = (
                f"bucket of {of[0]}, cut at {', '.join(f'{cut:g}' for cut in feature.boundaries)}"
            )
        case "ratio":
            positive, negative = feature.prior
            text = f"({of[0]} + {positive:g}) / ({of[1]} + {positive + negative:g})"
        case "mean":
            mean, weight = feature.prior
            text = f"({of[0]} + {mean * weight:g}) / ({of[1]} + {weight:g})"
        case "since":
            text = f"seconds from {of[0]} to the request"
        case "log1p":
            text = f"log(1 + {of[0]})"
        case "number":
            text = of[0]
    return text
