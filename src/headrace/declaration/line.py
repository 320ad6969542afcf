"""A line as a whole: label, model, gates, cadence, and that all names hang together."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from headrace.declaration.base import ColumnType, Declared, DurationUs, Name
from headrace.declaration.conversion import CONVERSION_COLUMNS, ConversionSpec
from headrace.declaration.delivery import DeliverySpec
from headrace.declaration.duty import DriftSpec, GuardSpec
from headrace.declaration.features import RequestFeature, WindowFeature
from headrace.declaration.operations import ResourcesSpec, RollbackSpec, TuneSpec
from headrace.declaration.serving import ServingSpec
from headrace.declaration.source import FileSource, LiveSource

RESERVED = frozenset(
    {"event", "impression_id", "request_id", "event_at", "arrival_at", "value", "offset"}
    | {
        "event_timestamp",
        "label",
        "request_at",
        "served_at",
        "score",
        "version",
        "arm",
        "propensity",
        "fallback",
    }
)


_OF_A_SAMPLE = (
    *("impression_id", "request_id", "label", "revision", "score", "sample_key"),
    *("label_of_impression", "label_rate_of_odd_stretch"),
)

DelayedFeedback = Literal["correct", "naive", "wait", "fnw", "esdfm"]


class LabelSpec(Declared):
    """What is predicted: whether `engagement` follows an impression inside the window.

    `provisional_after`: an impression without an engagement becomes a provisional negative
    after this wait and is corrected if one comes later inside the window. Without it a
    sample waits for an engagement or for the end of the window. `outcome: explicit` means that
    negatives are reported too (an engagement record with value 0); silence then never becomes
    a label: the impression ends as `unlabelled` when its window closes.

    `delayed_feedback` is how an engagement that comes late is learned (docs/adr/0010):
    `correct` takes the provisional negative back; `naive` leaves it; `wait` emits no provisional
    negative; `fnw` emits every impression as a negative at once and weighs both classes by the
    model's own prediction (Ktena et al. 2019), and only the gates wait `provisional_after`
    before they believe silence; `esdfm` weighs what was late (Yang et al. 2021).
    `negative_rate` is the share of negatives that training keeps, each at weight 1/rate.
    `conversion` makes the line a model of two tasks (docs/adr/0024).
    """

    engagement: Name
    outcome: Literal["implicit", "explicit"] = "implicit"
    attribution_window: DurationUs
    provisional_after: DurationUs | None = None
    delayed_feedback: DelayedFeedback = "correct"
    negative_rate: float = Field(1.0, gt=0, le=1)
    conversion: ConversionSpec | None = None

    @property
    def events(self) -> tuple[str, ...]:
        """The events that an application may report."""
        after = () if self.conversion is None else (self.conversion.engagement,)
        return ("impression", self.engagement, *after)

    @property
    def patience_us(self) -> int:
        """How long an impression may stay silent before it becomes a (provisional) negative."""
        if self.delayed_feedback == "fnw":
            return 0
        return self.provisional_after or self.attribution_window

    @model_validator(mode="after")
    def _wait_inside_window(self) -> Self:
        if self.provisional_after is not None and self.provisional_after > self.attribution_window:
            raise ValueError("provisional_after is longer than attribution_window; shorten it")
        if self.provisional_after is not None and self.outcome == "explicit":
            raise ValueError("outcome: explicit waits for outcomes; remove provisional_after")
        return self

    @model_validator(mode="after")
    def _feedback_fits(self) -> Self:
        policy = self.delayed_feedback
        if policy == "wait" and self.provisional_after is not None:
            raise ValueError(
                "delayed_feedback: wait waits for the window; remove provisional_after"
            )
        if policy in ("naive", "fnw", "esdfm") and self.provisional_after is None:
            raise ValueError(f"delayed_feedback: {policy} needs provisional_after; declare it")
        return self

    @model_validator(mode="after")
    def _conversion_fits(self) -> Self:
        conversion = self.conversion
        if conversion is None:
            return self
        if conversion.engagement in ("impression", "mark", self.engagement):
            raise ValueError(
                f"conversion.engagement: {conversion.engagement!r} is an event of its own already; "
                "name the event that follows the click"
            )
        if (conversion.provisional_after or 0) > conversion.attribution_window:
            raise ValueError(
                "conversion.provisional_after is longer than conversion.attribution_window; "
                "shorten it"
            )
        if self.outcome == "explicit":
            raise ValueError("conversion follows a click; remove outcome: explicit")
        if self.delayed_feedback in ("fnw", "esdfm"):
            raise ValueError(
                f"delayed_feedback: {self.delayed_feedback} weighs one task; with conversion "
                "declare correct, naive or wait"
            )
        return self


class ModelSpec(Declared):
    """Family and hyper-parameters. `categorical` and `numeric` name request features.

    `wide` names those of `categorical` that only the linear part of `ftrl_deep` learns, such as
    crosses: they cost no embedding (Cheng et al., "Wide & Deep Learning", 2016).
    `ids: dynamic` gives an id a row of its own once it was learned `admit_after` times, and takes
    it back after `expire_after` of event time without it; `wide` ids stay hashed.
    `precision` is that of the network's products of matrices; what is stored, added up and
    stepped stays float32. `replay_share` of the rows of an incremental training are older ones.
    """

    family: Literal["ftrl", "deep", "ftrl_deep", "dcn"] = "ftrl_deep"
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    ids: Literal["hashed", "dynamic"] = "hashed"
    admit_after: int = Field(1, ge=1)
    expire_after: DurationUs | None = None
    table_bits: int = Field(18, ge=8, le=26)
    embedding_dim: int = Field(8, ge=1, le=128)
    hidden: tuple[int, ...] = (32, 16)
    cross_layers: int = Field(2, ge=1, le=8)
    cross_rank: int = Field(16, ge=1, le=512)
    batch_size: int = Field(256, ge=1, le=65536)
    epochs: int = Field(1, ge=1, le=100)
    ftrl_alpha: float = Field(0.05, gt=0)
    ftrl_beta: float = Field(1.0, ge=0)
    ftrl_l1: float = Field(0.0, ge=0)
    ftrl_l2: float = Field(1.0, ge=0)
    embedding_learning_rate: float = Field(0.05, gt=0)
    dense_learning_rate: float = Field(0.002, gt=0)
    learning_rate_floor: float = Field(0.0, ge=0, lt=1)
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    replay_share: float = Field(0.0, ge=0, le=0.9)

    @model_validator(mode="after")
    def _has_inputs(self) -> Self:
        if not self.categorical and not self.numeric:
            raise ValueError("model needs at least one categorical or numeric feature")
        return self

    @model_validator(mode="after")
    def _wide_fits(self) -> Self:
        if self.wide and self.family != "ftrl_deep":
            raise ValueError(f"wide is for family ftrl_deep, not {self.family}; remove it")
        for name in self.wide:
            if name not in self.categorical:
                raise ValueError(f"wide: {name!r} is not in categorical; add it there")
        return self

    @model_validator(mode="after")
    def _floor_has_a_start(self) -> Self:
        if self.learning_rate_floor and not self.ftrl_beta and self.family != "deep":
            raise ValueError(
                "learning_rate_floor is a share of the first rate, which ftrl_beta: 0 makes "
                "infinite; give ftrl_beta a value"
            )
        return self

    @model_validator(mode="after")
    def _ids_fit(self) -> Self:
        dynamic = self.ids == "dynamic"
        if not dynamic and (self.admit_after != 1 or self.expire_after is not None):
            raise ValueError("admit_after and expire_after are for ids: dynamic; declare it")
        if dynamic and not self.embedded:
            raise ValueError("ids: dynamic needs a categorical feature that is not wide")
        return self

    @property
    def embedded(self) -> tuple[str, ...]:
        """The categorical features that are not `wide`."""
        return tuple(name for name in self.categorical if name not in self.wide)


class ExpectationSpec(Declared):
    """One demand on a column of a window, in place of the generated one of that kind, or beside
    all. `drop`: the generated one is not asked.
    """

    column: str = ""
    kind: Literal["rows", "present", "one_of", "unique", "mean", "between"]
    low: float | None = None
    high: float | None = None
    values: tuple[int, ...] = ()
    drop: bool = False


class DataGateSpec(Declared):
    """What a window of samples must look like to be learned.

    `reference_rows` of the newest accepted rows before it are its reference. `max_drift`: of each
    input and of the label delay, as population stability index. `max_information`: share of the
    label's entropy that one input may tell. `key_label_rate`: categorical
    input to the label rate that no single id of it may surely exceed. `max_lost_labels`: share of
    engagements that found no impression in time. `expectations` may also stand in the files
    `<line>/expectations/*.yaml` beside the line's.
    """

    min_rows: int = Field(50, ge=1)
    label_rate: tuple[float, float] = (0.0, 1.0)
    max_missing_share: float = Field(0.5, ge=0, le=1)
    reference_rows: int = Field(10_000, ge=0)
    max_drift: float = Field(1.0, gt=0)
    max_information: float = Field(0.3, gt=0, le=1)
    max_lost_labels: float = Field(0.5, ge=0, le=1)
    key_label_rate: dict[str, float] = Field(default_factory=dict)
    expectations: tuple[ExpectationSpec, ...] = ()


class ModelGateSpec(Declared):
    """What a candidate must show against the champion on identical later rows.

    `max_update_growth`: of a learner's step, its norm over the median of the steps before.
    `max_score_shift`: of the distribution of scores from the champion's, in log odds.
    `slices`: categorical inputs whose commonest values are judged by themselves.
    `max_importance`: share of what all inputs explain that one may explain alone.
    `max_predict_time`, `max_bytes`: of a row and of the version, asked only where declared.
    """

    min_rows: int = Field(100, ge=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    max_logloss_increase: float = Field(0.01, ge=0)
    calibration: tuple[float, float] = (0.5, 2.0)
    min_conversions: int = Field(20, ge=1)
    max_evidence_age: DurationUs = 600_000_000
    max_update_growth: float = Field(10.0, gt=1)
    max_auc_drop: float = Field(0.02, ge=0)
    max_score_shift: float = Field(1.0, gt=0)
    slices: tuple[str, ...] = ()
    max_slice_logloss_increase: float = Field(0.1, ge=0)
    max_importance: float = Field(0.9, gt=0, le=1)
    max_predict_time: DurationUs | None = None
    max_bytes: int | None = Field(None, ge=1)


class GateSpec(Declared):
    """Both gates fail closed."""

    data: DataGateSpec = DataGateSpec()
    model: ModelGateSpec = ModelGateSpec()


class CadenceSpec(Declared):
    """`tick`: micro-batch of features and samples; `incremental`, `full`: the two DAGs.

    `on_samples`: so many new samples start an incremental cycle before its time is up.
    `learn`: how often a resident learner takes a step; `race`: how often the conductor of the
    line's races looks. With each, the stack starts one.
    """

    tick: DurationUs = 1_000_000
    incremental: DurationUs = 30_000_000
    on_samples: int | None = Field(None, ge=1)
    full: DurationUs = 86_400_000_000
    learn: DurationUs | None = None
    race: DurationUs | None = None


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
        known = {"", *_OF_A_SAMPLE, *inputs, *(f"{name}__missing" for name in inputs)}
        for each in self.gates.data.expectations:
            if each.column not in known or (each.kind == "rows") != (not each.column):
                raise ValueError(
                    f"gates.data.expectations: {each.kind} of column {each.column!r}; name an "
                    f"input of the model, <input>__missing or one of {', '.join(_OF_A_SAMPLE)}, "
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

    @property
    def views(self) -> dict[str, tuple[WindowFeature, ...]]:
        """Window features by Feast view: one view (`flights_by_origin_dest`) for each key tuple."""
        grouped: dict[str, list[WindowFeature]] = {}
        for feature in self.windows:
            grouped.setdefault(f"{self.line}_by_{'_'.join(feature.key)}", []).append(feature)
        return {name: tuple(features) for name, features in grouped.items()}

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

    @model_validator(mode="after")
    def _names_hang_together(self) -> Self:
        known: dict[str, str] = dict(self.columns)
        for feature in self.windows:
            self._check_window(feature)
            self._declare(known, feature.name, self.window_kind(feature))
        for request in self.request_features:
            for name in request.inputs:
                if name not in known:
                    raise ValueError(
                        f"request_features.{request.name}: {name!r} is not a column, a window "
                        "or an earlier request feature; declare it above"
                    )
                self._check_kind(request, name, known[name])
            self._declare(known, request.name, request.produces)
        produced = {request.name: request.produces for request in self.request_features}
        for kind, names in (("id", self.model.categorical), ("number", self.model.numeric)):
            for name in names:
                if produced.get(name) != kind:
                    raise ValueError(
                        f"model: {name!r} is not a request feature that produces a {kind}; wrap it "
                        "(hash, cross, bucketize … give ids; number, log1p, ratio give numbers)"
                    )
        if self.label.conversion is not None:
            for name in sorted(CONVERSION_COLUMNS & known.keys()):
                raise ValueError(
                    f"{name!r} is a column of samples with conversions; choose another name"
                )
        if isinstance(self.source, FileSource):
            if self.label.conversion is not None:
                raise ValueError(
                    "label.conversion: files hold no conversions; post them (source: kind: live)"
                )
            unknown = set(self.source.impressions.columns) - set(self.columns)
            if unknown:
                raise ValueError(
                    f"source.impressions.columns: {sorted(unknown)} are not declared in columns"
                )
        return self

    @staticmethod
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

    def _check_window(self, feature: WindowFeature) -> None:
        for name in feature.key:
            if self.columns.get(name) not in ("string", "int"):
                raise ValueError(
                    f"windows.{feature.name}: key {name!r} must be a declared string or int column"
                )
        if feature.event not in ("impression", self.label.engagement):
            raise ValueError(
                f"windows.{feature.name}: event {feature.event!r} is neither 'impression' nor the "
                f"engagement {self.label.engagement!r}"
            )
        any_kind = feature.aggregate in ("distinct", "last")
        kinds = ("string", "int") if any_kind else ("int",)
        if feature.column != "value" and self.columns.get(feature.column) not in kinds:
            raise ValueError(
                f"windows.{feature.name}: column {feature.column!r} must be 'value' or "
                + ("a string or int column" if any_kind else "an int column")
                + (" (sums are of integers)" if feature.aggregate == "sum" else "")
            )

    @staticmethod
    def _declare(known: dict[str, str], name: str, kind: str) -> None:
        if name in known or name in RESERVED:
            raise ValueError(f"{name!r} is declared twice or reserved; choose another name")
        known[name] = kind
