"""A line's YAML as one frozen value: the only declaration of a model that must stay fresh.

Everything else (Feast views, Arrow schemas, the kernel, the trainer, the gates, the
DAGs) is derived from it. Unknown keys are refused. Durations are written with a unit
(`30s`, `10m`, `1h`, `7d`) and held as integer microseconds.
"""

from headrace.declaration.base import Declared, parse_duration_us
from headrace.declaration.conversion import ConversionSpec
from headrace.declaration.delivery import DeliverySpec
from headrace.declaration.duty import GuardSpec
from headrace.declaration.features import (
    MISSING,
    Bucketize,
    Cross,
    Hash,
    Mean,
    Number,
    Ratio,
    RequestFeature,
    Since,
    TimePart,
    WindowFeature,
)
from headrace.declaration.gates import ModelGateSpec
from headrace.declaration.label import DelayedFeedback, LabelSpec
from headrace.declaration.line import LineSpec
from headrace.declaration.model import ModelSpec
from headrace.declaration.nearline import NearlineSpec
from headrace.declaration.operations import ResourcesSpec, RollbackSpec, TuneSpec
from headrace.declaration.source import (
    DelayDistribution,
    Explode,
    FileSource,
    FileSpec,
    LabelInRow,
    LiveSource,
    Outcomes,
    TimeSpec,
    names_of,
    words_of,
)
from headrace.declaration.words import in_words, write_duration

__all__ = [
    "MISSING",
    "Bucketize",
    "ConversionSpec",
    "Cross",
    "Declared",
    "DelayDistribution",
    "DelayedFeedback",
    "DeliverySpec",
    "Explode",
    "FileSource",
    "FileSpec",
    "GuardSpec",
    "Hash",
    "LabelInRow",
    "LabelSpec",
    "LineSpec",
    "LiveSource",
    "Mean",
    "ModelGateSpec",
    "ModelSpec",
    "NearlineSpec",
    "Number",
    "Outcomes",
    "Ratio",
    "RequestFeature",
    "ResourcesSpec",
    "RollbackSpec",
    "Since",
    "TimePart",
    "TimeSpec",
    "TuneSpec",
    "WindowFeature",
    "in_words",
    "names_of",
    "parse_duration_us",
    "words_of",
    "write_duration",
]
