"""What the ingest process says of itself, in Prometheus' text format."""

from __future__ import annotations

import time

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from headrace.ingest.limits import REASONS
from headrace.ingest.metrics import STAGES, IngestMetrics
from headrace.labels.state import FATES
from headrace.sample import ticks
from tests.campaign import SPEC, Pushed, ingesting, posted, value_of, vectors, wait_for

GOLDEN = {  # what a dashboard or an alert may rely on: name, type, labels
    "headrace_ingest": ("info", {"line", "feature_service"}),
    "headrace_ingest_append_seconds": ("histogram", set()),
    "headrace_ingest_checkpoint_seconds": ("histogram", set()),
    "headrace_ingest_corrections": ("counter", set()),
    "headrace_ingest_disk_free_bytes": ("gauge", set()),
    "headrace_ingest_events_accepted": ("counter", set()),
    "headrace_ingest_events_behind": ("gauge", set()),
    "headrace_ingest_events_malformed": ("counter", set()),
    "headrace_ingest_fates": ("counter", {"fate"}),
    "headrace_ingest_feature_rows_pushed": ("counter", {"view"}),
    "headrace_ingest_last_push_timestamp_seconds": ("gauge", set()),
    "headrace_ingest_log_head": ("gauge", set()),
    "headrace_ingest_log_lag": ("gauge", set()),
    "headrace_ingest_log_segments": ("gauge", set()),
    "headrace_ingest_push_failures": ("counter", set()),
    "headrace_ingest_queue_bytes": ("gauge", set()),
    "headrace_ingest_queue_rows": ("gauge", set()),
    "headrace_ingest_requests_refused": ("counter", {"reason"}),
    "headrace_ingest_samples": ("counter", set()),
    "headrace_ingest_seconds_behind": ("gauge", set()),
    "headrace_ingest_tick_seconds": ("histogram", {"stage"}),
    "headrace_ingest_ticks": ("counter", set()),
    "headrace_ingest_watermark_timestamp_seconds": ("gauge", set()),
}


def test_every_metric_has_its_name_its_type_and_a_help_text(settings):
    before = {family.name for family in REGISTRY.collect()}
    with ingesting(settings, SPEC, Pushed()) as client:
        answer = client.get("/metrics")
        client.post("/v1/events", json={"events": [7] * 20_000})
        page = client.get("/metrics").text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = {
        family.name: family
        for family in text_string_to_metric_families(page)
        if not family.name.endswith("_created")
    }
    # The text format gives counters and infos the suffix of their samples.
    assert {name.removesuffix("_info") for name in found} == GOLDEN.keys()
    for name, family in found.items():
        kind, labels = GOLDEN[name.removesuffix("_info")]
        assert family.type == ("gauge" if kind == "info" else kind), name
        assert len(family.documentation) > 10, name
        seen = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert seen == labels, name
    assert {family.name for family in REGISTRY.collect()} == before


def test_labels_take_their_values_from_closed_sets_that_are_there_from_the_start():
    families = {
        family.name: family
        for family in text_string_to_metric_families(IngestMetrics(SPEC).page().decode())
    }

    def values(name: str, label: str) -> set[str]:
        return {sample.labels[label] for sample in families[name].samples}

    assert values("headrace_ingest_tick_seconds", "stage") == set(STAGES)
    assert values("headrace_ingest_fates", "fate") == set(FATES)
    assert values("headrace_ingest_feature_rows_pushed", "view") == set(SPEC.views)
    assert values("headrace_ingest_requests_refused", "reason") == set(REASONS)


def test_the_figures_are_those_of_what_happened(settings):
    home, pushed = settings.line_home(SPEC.line), Pushed()
    vectors(home, ["a", "b"])
    began = time.time()
    with ingesting(settings, SPEC, pushed) as client:
        events = [posted("a"), posted("b"), posted("b"), posted("a", "click"), {"event": "buy"}]
        client.post("/v1/events", json={"events": events})
        wait_for(lambda: client.get("/v1/status").json()["events_to"] == 4)
        wait_for(lambda: len(pushed.calls) == len(ticks(home)[-1].features))
        wait_for(lambda: value_of(client.get("/metrics").text, "headrace_ingest_ticks_total") == 1)
        page = client.get("/metrics").text

    def value(name: str, **labels: str) -> float:
        return value_of(page, f"headrace_ingest_{name}", **labels)

    assert (value("events_accepted_total"), value("events_malformed_total")) == (4, 1)
    assert (value("log_head"), value("log_segments"), value("events_behind")) == (4, 1, 0)
    assert (value("queue_rows"), value("queue_bytes"), value("seconds_behind")) == (0, 0, 0)
    assert (value("samples_total"), value("corrections_total")) == (1, 0)
    assert value("fates_total", fate="duplicate_impression") == 1
    assert value("append_seconds_count") == 1
    assert value("checkpoint_seconds_count") == 0
    for stage in STAGES:
        assert value("tick_seconds_count", stage=stage) == 1
        assert 0 < value("tick_seconds_sum", stage=stage) < 20
    rows = {view: sum(r.num_rows for v, r in pushed.calls if v == view) for view in SPEC.views}
    assert min(rows.values()) > 0
    for view, count in rows.items():
        assert value("feature_rows_pushed_total", view=view) == count
    assert began < value("last_push_timestamp_seconds") < time.time() + 1
    assert abs(value("watermark_timestamp_seconds") - ticks(home)[0].at_us / 1e6) < 0.001
    assert value("disk_free_bytes") > 2**20
