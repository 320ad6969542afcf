"""A line as a whole: its parts, and that what they say of each other is true."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from headrace.declaration.base import ColumnType, Declared, DurationUs, Name
from headrace.declaration.cadence import CadenceSpec
from headrace.declaration.conversion import CONVERSION_COLUMNS
from headrace.declaration.delivery import DeliverySpec
from headrace.declaration.duty import DriftSpec, GuardSpec
from headrace.declaration.features import RequestFeature, WindowFeature
from headrace.declaration.gates import GateSpec
from headrace.declaration.label import LabelSpec
from headrace.declaration.model import ModelSpec
from headrace.declaration.names import OF_A_SAMPLE, Names
from headrace.declaration.nearline import NearlineSpec
from headrace.declaration.operations import ResourcesSpec, RollbackSpec, TuneSpec
from headrace.declaration.serving import ServingSpec
from headrace.declaration.source import FileSource, LiveSource


class LineSpec(Declared):
    """One line: a named model with its events, features, label, gates and cadence.

    `feature_ttl`: a view's row counts for a request iff `<view>__at >= request_at - feature_ttl`;
    otherwise its windows read as empty (docs/adr/0014). None: rows never expire.
    """

    line: Name
    version: int = Field(1, ge=1)
    description: str = ""
    timezone: str = "UTC"
    seed: int = Field(0, ge=0)
    columns: dict[Name, ColumnType] = Field(min_length=1)
    source: Annotated[LiveSource | FileSource, Field(discriminator="kind")]
    label: LabelSpec
    windows: tuple[WindowFeature, ...] = ()
    feature_ttl: DurationUs | None = None
    request_features: tuple[RequestFeature, ...] = ()
    model: ModelSpec
    gates: GateSpec = GateSpec()
    guard: GuardSpec = GuardSpec()
    drift: DriftSpec = DriftSpec()
    cadence: CadenceSpec = CadenceSpec()
    delivery: DeliverySpec = DeliverySpec()
    serving: ServingSpec = ServingSpec()
    rollback: RollbackSpec = RollbackSpec()
    tune: TuneSpec | None = None
    nearline: NearlineSpec | None = None
    resources: ResourcesSpec = ResourcesSpec()

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):  # OSError: a name that is a folder of zones
            raise ValueError("not a time zone; use UTC or a name such as Europe/Berlin") from None
        return name

    @model_validator(mode="after")
    def _ttl_outlives_windows(self) -> Self:
        if self.feature_ttl is None:
            return self
        ttl_s = self.feature_ttl / 1e6
        if not ttl_s.is_integer():
            raise ValueError(
                f"feature_ttl of {ttl_s:g}s is not a whole number of seconds, and Feast's stores "
                "know no fractions; round it up"
            )
        longest = max(self.windows, key=lambda feature: feature.window, default=None)
        if longest is not None and self.feature_ttl < longest.window:
            raise ValueError(
                f"feature_ttl of {ttl_s:g}s is shorter than the {longest.window / 1e6:g}s of "
                f"window {longest.name!r}: a row would expire while the window still counts its "
                "events; lengthen feature_ttl or shorten the window"
            )
        return self

    @model_validator(mode="after")
    def _replayed_rows_are_true(self) -> Self:
        policy = self.label.delayed_feedback
        if self.model.replay_share and policy not in ("correct", "wait"):
            raise ValueError(
                f"model.replay_share: {policy} weighs a stream in which late positives were "
                "negatives first, and settled rows are none; use delayed_feedback: correct or wait"
            )
        return self

    @model_validator(mode="after")
    def _gates_name_inputs(self) -> Self:
        named = {
            "gates.data.key_label_rate": self.gates.data.key_label_rate,
            "gates.model.slices": self.gates.model.slices,
        }
        for key, name in ((key, name) for key, names in named.items() for name in names):
            if name not in self.model.categorical:
                raise ValueError(
                    f"{key}: {name!r} is not in model.categorical; name one of "
                    f"{', '.join(self.model.categorical) or 'those that you add there'}"
                )
        return self

    @model_validator(mode="after")
    def _expectations_name_columns(self) -> Self:
        inputs = (*self.model.categorical, *self.model.numeric)
        known = {"", *OF_A_SAMPLE, *inputs, *(f"{name}__missing" for name in inputs)}
        for each in self.gates.data.expectations:
            if each.column not in known or (each.kind == "rows") != (not each.column):
                raise ValueError(
                    f"gates.data.expectations: {each.kind} of column {each.column!r}; name an "
                    f"input of the model, <input>__missing or one of {', '.join(OF_A_SAMPLE)}, "
                    "and no column for rows"
                )
        return self

    @model_validator(mode="after")
    def _prior_says_all_tasks(self) -> Self:
        if self.serving.prior is not None and self.converts:
            raise ValueError(
                "serving.prior is a click rate, which says nothing of conversions; remove it: "
                "the rates of the champion's training stand in"
            )
        return self

    @model_validator(mode="after")
    def _names_hang_together(self) -> Self:
        names = Names(self.columns, self.label.engagement)
        for feature in self.windows:
            names.add_window(feature, self.window_kind(feature))
        for request in self.request_features:
            names.add_request(request)
        names.check_inputs(self.model)
        if self.converts:
            names.leave_to_conversions(CONVERSION_COLUMNS)
        return self

    @model_validator(mode="after")
    def _files_hold_what_is_asked(self) -> Self:
        if not isinstance(self.source, FileSource):
            return self
        if self.converts:
            raise ValueError(
                "label.conversion: files hold no conversions; post them (source: kind: live)"
            )
        unknown = set(self.source.impressions.columns) - set(self.columns)
        if unknown:
            raise ValueError(
                f"source.impressions.columns: {sorted(unknown)} are not declared in columns"
            )
        return self

    def __copy__(self) -> Self:
        """For `model_copy`, which may change fields: what was derived from them stays behind."""
        copied = super().__copy__()
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    @property
    def guards(self) -> bool:
        """Whether the line declares a guard, which the stack then starts."""
        return "guard" in self.model_fields_set

    @property
    def converts(self) -> bool:
        """Whether the line has a second task: the conversion after the click."""
        return self.label.conversion is not None

    @property
    def feature_service(self) -> str:
        """Name of the Feast feature service, such as `flights_v1`."""
        return f"{self.line}_v{self.version}"

    @cached_property
    def views(self) -> dict[str, tuple[WindowFeature, ...]]:
        """Window features by Feast view: one view (`flights_by_origin_dest`) for each key tuple."""
        grouped: dict[str, list[WindowFeature]] = {}
        for feature in self.windows:
            grouped.setdefault(f"{self.line}_by_{'_'.join(feature.key)}", []).append(feature)
        return {name: tuple(features) for name, features in grouped.items()}

    @cached_property
    def key_columns(self) -> tuple[str, ...]:
        """The columns that are parts of a window's key."""
        return tuple(dict.fromkeys(name for feature in self.windows for name in feature.key))

    @cached_property
    def foreseen(self) -> tuple[RequestFeature, ...]:
        """The request features that read no window, neither themselves nor through others."""
        waits, found = {feature.name for feature in self.windows}, []
        for feature in self.request_features:
            if waits.isdisjoint(feature.inputs):
                found.append(feature)
            else:
                waits.add(feature.name)
        return tuple(found)

    @cached_property
    def window_features(self) -> dict[str, WindowFeature]:
        """The windows by name."""
        return {feature.name: feature for feature in self.windows}

    @property
    def longest_window_us(self) -> int:
        """Length of the longest declared window, 0 without windows."""
        return max((feature.window for feature in self.windows), default=0)

    def window_kind(self, feature: WindowFeature) -> Literal["int", "string", "moment"]:
        """What its int64 values mean: a number, the hash of a text, or a time in µs."""
        if feature.aggregate == "last_at":
            return "moment"
        is_text = feature.aggregate == "last" and self.columns.get(feature.column) == "string"
        return "string" if is_text else "int"
