"""A line's YAML is parsed once; every mistake is named with its key, value and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.declaration import LineSpec, parse_duration_us, words_of
from headrace.errors import DeclarationError
from headrace.feature_rows import line_tags
from headrace.settings import load_line, load_lines, load_settings

LINES = Path(__file__).resolve().parents[2] / "lines"


def raw(name: str = "coupons") -> dict[str, Any]:
    loaded = yaml.safe_load((LINES / f"{name}.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def refusal(tmp_path: Path, line: Any) -> str:
    path = tmp_path / "line.yaml"
    path.write_text(yaml.safe_dump(line))
    with pytest.raises(DeclarationError) as caught:
        load_line(path)
    return str(caught.value)


@pytest.mark.parametrize("name", ["coupons", "flights", "news"])
def test_shipped_lines_parse(name: str) -> None:
    spec = load_line(LINES / f"{name}.yaml")
    assert spec.line == name
    assert spec.feature_service == f"{name}_v1"


def test_a_line_is_frozen() -> None:
    spec = load_line(LINES / "coupons.yaml")
    with pytest.raises(Exception, match="frozen"):
        spec.version = 2


@pytest.mark.parametrize(
    ("text", "microseconds"), [("250ms", 250_000), ("30s", 30_000_000), ("7d", 604_800_000_000)]
)
def test_durations_carry_a_unit(text: str, microseconds: int) -> None:
    assert parse_duration_us(text) == microseconds


@pytest.mark.parametrize("text", [30, "30", "1.5h", "h", "-3s", None])
def test_a_duration_without_a_unit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="unit"):
        parse_duration_us(text)


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    line = raw()
    line["model"]["learning_rat"] = 0.1
    message = refusal(tmp_path, line)
    assert "model.learning_rat" in message
    assert "unknown key" in message


def test_a_window_without_a_unit_is_named(tmp_path: Path) -> None:
    line = raw()
    line["windows"][0]["window"] = 60
    message = refusal(tmp_path, line)
    assert "windows.0.window" in message
    assert "30s" in message


def test_features_may_not_expire_before_their_window_ends(tmp_path: Path) -> None:
    line = raw()
    line["feature_ttl"] = "29m"  # the longest window of the line is 30m
    message = refusal(tmp_path, line)
    assert "feature_ttl of 1740s is shorter than the 1800s of window 'user_category_imp" in message
    assert "lengthen feature_ttl" in message
    line["feature_ttl"] = "1800500ms"
    assert "1800.5s is not a whole number" in refusal(tmp_path, line)
    line["feature_ttl"] = 1800
    assert "feature_ttl: 1800 is not a duration" in refusal(tmp_path, line)
    line["feature_ttl"] = "30m"
    assert LineSpec.model_validate(line).feature_ttl == 1_800_000_000


def test_a_ttl_is_part_of_what_was_registered() -> None:
    line = raw()
    none, hour, day = (
        line_tags(LineSpec.model_validate(line | ttl))["headrace_digest"]
        for ttl in ({}, {"feature_ttl": "1h"}, {"feature_ttl": "1d"})
    )
    assert len({none, hour, day}) == 3
    spelled = line_tags(LineSpec.model_validate(line | {"feature_ttl": "60m"}))
    assert spelled["headrace_digest"] == hour


def test_the_label_may_not_become_a_feature(tmp_path: Path) -> None:
    line = raw("flights")
    line["columns"]["delayed"] = "int"
    line["source"]["impressions"]["columns"]["delayed"] = "late"
    message = refusal(tmp_path, line)
    assert "columns.delayed" in message
    assert "'late'" in message


def test_what_is_not_known_at_exposure_may_not_become_a_feature(tmp_path: Path) -> None:
    line = raw("flights")
    line["source"]["impressions"]["columns"]["distance"] = "distance + arr_delay"
    assert "'arr_delay'" in refusal(tmp_path, line)


def test_a_feature_of_an_undeclared_column_is_named(tmp_path: Path) -> None:
    line = raw()
    line["request_features"].append({"name": "x", "kind": "hash", "of": "nope"})
    assert "request_features.x: 'nope'" in refusal(tmp_path, line)


def test_a_float_has_no_identity(tmp_path: Path) -> None:
    line = raw()
    line["request_features"].append({"name": "x", "kind": "hash", "of": "discount"})
    assert "'discount' is a float" in refusal(tmp_path, line)


def test_text_is_no_number(tmp_path: Path) -> None:
    line = raw()
    line["request_features"].append({"name": "x", "kind": "log1p", "of": "user_id"})
    assert "'user_id' is text" in refusal(tmp_path, line)


def test_model_inputs_must_be_request_features(tmp_path: Path) -> None:
    line = raw()
    line["model"]["numeric"].append("user")
    assert "'user' is not a request feature that produces a number" in refusal(tmp_path, line)


def test_names_are_declared_once(tmp_path: Path) -> None:
    line = raw()
    line["windows"].append(dict(line["windows"][0]))
    assert "declared twice" in refusal(tmp_path, line)


def test_sums_are_of_integers(tmp_path: Path) -> None:
    line = raw()
    line["windows"][0] |= {"aggregate": "sum", "column": "discount"}
    assert "sums are of integers" in refusal(tmp_path, line)


@pytest.mark.parametrize(
    ("window", "remedy"),
    [
        ({"aggregate": "min", "column": "discount"}, "must be 'value' or an int column"),
        ({"aggregate": "max", "column": "user_id"}, "must be 'value' or an int column"),
        ({"aggregate": "distinct", "column": "discount"}, "a string or int column"),
        ({"aggregate": "last"}, "'last' needs column"),
        ({"aggregate": "last_at", "column": "position"}, "remove column"),
        ({"aggregate": "count", "rank": 2}, "rank belongs to aggregate 'last'"),
        ({"aggregate": "last", "column": "position", "rank": 0}, "windows.8.rank"),
        ({"aggregate": "median", "column": "position"}, "windows.8.aggregate"),
    ],
)
def test_a_window_that_cannot_be_is_refused(tmp_path: Path, window: Any, remedy: str) -> None:
    line = raw()
    shared = {"name": "x", "key": ["user_id"], "event": "click", "window": "1m"}
    line["windows"].append(shared | window)
    assert remedy in refusal(tmp_path, line)


@pytest.mark.parametrize(
    ("feature", "remedy"),
    [
        ({"kind": "number", "of": "seen_at"}, "'seen_at' is a moment; kind 'since'"),
        ({"kind": "since", "of": "position"}, "'position' is a int; kind 'since'"),
        ({"kind": "number", "of": "user_last"}, "'user_last' is text"),
        ({"kind": "mean", "of": ["position", "position"], "prior": [1, -1]}, "weight must be"),
    ],
)
def test_a_window_is_used_as_what_it_is(tmp_path: Path, feature: Any, remedy: str) -> None:
    line = raw()
    shared = {"key": ["item_id"], "event": "click", "window": "1m"}
    line["windows"] += [
        {**shared, "name": "seen_at", "aggregate": "last_at"},
        {**shared, "name": "user_last", "aggregate": "last", "column": "user_id"},
    ]
    line["request_features"].append({"name": "x"} | feature)
    assert remedy in refusal(tmp_path, line)


def test_a_window_needs_a_known_event(tmp_path: Path) -> None:
    line = raw()
    line["windows"][0]["event"] = "purchase"
    assert "'purchase'" in refusal(tmp_path, line)


@pytest.mark.parametrize(
    ("label", "named"),
    [
        ({"delayed_feedback": "wait"}, "remove provisional_after"),
        ({"delayed_feedback": "fnw", "provisional_after": None}, "fnw needs provisional_after"),
        ({"delayed_feedback": "defuse"}, "label.delayed_feedback"),
        ({"negative_rate": 0}, "label.negative_rate"),
    ],
)
def test_delayed_feedback_must_fit_the_wait(
    tmp_path: Path, label: dict[str, Any], named: str
) -> None:
    line = raw()
    line["label"] |= label
    assert named in refusal(tmp_path, line)


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    assert "mapping" in refusal(tmp_path, ["line"])


def test_two_lines_may_not_share_a_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text((LINES / "coupons.yaml").read_text())
    with pytest.raises(DeclarationError, match="declared twice"):
        load_lines(tmp_path)


def test_views_group_windows_by_key() -> None:
    spec = load_line(LINES / "coupons.yaml")
    assert list(spec.views) == [
        "coupons_by_item_id",
        "coupons_by_user_id",
        "coupons_by_user_id_category",
    ]


def test_a_line_survives_json() -> None:
    spec = load_line(LINES / "flights.yaml")
    assert spec.model_dump(mode="json") == load_line(LINES / "flights.yaml").model_dump(mode="json")
    assert isinstance(spec, LineSpec)


def test_string_literals_are_no_identifiers() -> None:
    assert words_of("CASE WHEN a = 'late' THEN b END") == {"CASE", "WHEN", "a", "THEN", "b", "END"}


def test_a_port_must_be_a_number() -> None:
    with pytest.raises(DeclarationError, match="HEADRACE_SERVER_PORT='http'"):
        load_settings({"HEADRACE_SERVER_PORT": "http"})


def test_services_bind_to_loopback_unless_told_otherwise() -> None:
    assert load_settings({}).host == "127.0.0.1"


def test_who_stands_in_is_an_order_that_can_be_switched_off() -> None:
    def order(declared: object) -> tuple[str, ...]:
        return LineSpec.model_validate(raw() | {"serving": {"fallback": declared}}).serving.fallback

    assert load_line(LINES / "coupons.yaml").serving.fallback == ("defaults", "previous", "prior")
    assert order(["previous", "defaults"]) == ("previous", "defaults")
    assert order([]) == order(yaml.safe_load("off")) == order("off") == ()


@pytest.mark.parametrize(
    ("serving", "said"),
    [
        ({"fallback": ["prior", "previous"]}, "put it last"),
        ({"fallback": ["defaults", "defaults"]}, "'defaults' stands twice"),
        ({"fallback": ["guess"]}, "serving.fallback"),
        ({"prior": 1.0}, "serving.prior"),
        ({"read_timeout": "0ms"}, "serving.read_timeout"),
    ],
)
def test_who_stands_in_is_checked(tmp_path: Path, serving: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, raw() | {"serving": serving})


def test_a_prior_of_clicks_says_nothing_of_conversions(tmp_path: Path) -> None:
    line = raw() | {"serving": {"prior": 0.1}}
    assert LineSpec.model_validate(line).serving.prior == 0.1
    line["label"]["conversion"] = {"engagement": "buy", "attribution_window": "1h"}
    assert "serving.prior is a click rate" in refusal(tmp_path, line)


def test_a_line_guards_where_it_says_so() -> None:
    assert not load_line(LINES / "coupons.yaml").guards
    assert LineSpec.model_validate(raw() | {"guard": {}}).guards


def test_a_changed_copy_of_a_line_derives_its_views_anew() -> None:
    spec = load_line(LINES / "coupons.yaml")
    views = spec.views
    fewer = spec.model_copy(update={"line": "other", "windows": spec.windows[:1]})
    assert list(fewer.views) == ["other_by_item_id"]
    assert set(fewer.window_features) == {spec.windows[0].name}
    assert spec.views is views
    assert {f.name for f in spec.foreseen} >= {"user", "hour", "discount_bucket"}
    assert "user_category_ctr_bucket" not in {f.name for f in spec.foreseen}
    assert spec.model_copy() == spec
