"""Corrected labels as a model learns them, and the sheets that bring them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from headrace.cases import among, as_learned, relabelled, sheet
from headrace.cases.book import case_schema
from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.events import sample_schema
from headrace.labels.revisions import thin_negatives

LINES = Path(__file__).parents[2] / "lines"
CONVERSION = {"engagement": "purchase", "attribution_window": "1d"}


def line(**label: Any) -> LineSpec:
    raw = yaml.safe_load((LINES / "coupons.yaml").read_text())
    raw["label"] |= label
    return LineSpec.model_validate(raw)


def filled(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of a schema with the given values and zeros."""
    blank = {pa.string(): "", pa.float64(): 0.0, pa.float32(): 0.0}
    whole = [{f.name: row.get(f.name, blank.get(f.type, 0)) for f in schema} for row in rows]
    return pa.Table.from_pylist(whole, schema=schema)


def sample(number: int, label: int) -> dict[str, Any]:
    return {
        "impression_id": f"i{number}",
        "impression_offset": number,
        "label": label,
        "positive_weight": float(label),
        "negative_weight": float(1 - label),
        "conversion_negative_weight": 1.0,
    }


def case(number: int, label: int, corrected: int, weight: float = 10.0) -> dict[str, Any]:
    return {**sample(number, label), "corrected": corrected, "case_weight": weight}


def weights(rows: pa.Table) -> dict[str, tuple[float, float]]:
    names = ("impression_id", "positive_weight", "negative_weight")
    columns = (rows[name].to_pylist() for name in names)
    return {name: (plus, minus) for name, plus, minus in zip(*columns, strict=True)}


def test_a_corrected_row_takes_back_what_was_learned_and_weighs_more() -> None:
    spec = line()
    cases = filled(case_schema(spec), [case(4, 0, 1), case(9, 1, 0, 3.0)])
    rows = as_learned(spec, cases)
    assert rows.schema.equals(sample_schema(spec))
    assert weights(rows) == {"i4": (10, -1), "i9": (-1, 3)}
    assert rows["label"].to_pylist() == [1, 0]
    assert rows["revision"].to_pylist() == [1, 1]


@pytest.mark.parametrize("converts", [False, True])
def test_of_a_thinned_negative_what_was_learned_of_it_is_taken_back(converts: bool) -> None:
    label = {"conversion": CONVERSION} if converts else {}
    spec, schema = line(negative_rate=0.25, **label), sample_schema(line(**label))
    negatives = filled(schema, [sample(number, 0) for number in range(200)])
    learned = weights(thin_negatives(spec, negatives))
    cases = filled(case_schema(spec), [case(number, 0, 1) for number in range(200)])
    rows = as_learned(spec, cases)
    for name, (plus, minus) in weights(rows).items():
        assert plus == 10
        assert minus == -learned.get(name, (0, 0))[1]
    assert 20 < len(learned) < 80
    if converts:  # without a conversion it stands for itself again
        kept = pa.concat_tables([thin_negatives(spec, negatives), rows])
        net = kept.group_by("impression_id").aggregate([("conversion_negative_weight", "sum")])
        assert set(net["conversion_negative_weight_sum"].to_pylist()) == {1.0}


def test_a_click_taken_back_is_one_negative_that_is_never_thinned_away() -> None:
    spec = line(negative_rate=0.01)
    cases = filled(case_schema(spec), [case(number, 1, 0) for number in range(50)])
    assert set(weights(as_learned(spec, cases)).values()) == {(-1, 10)}
    clicks = filled(sample_schema(spec), [sample(number, 1) for number in range(50)])
    rows, count = relabelled(spec, clicks, cases)
    assert count == 50
    assert set(weights(rows).values()) == {(0, 10)}


def test_from_scratch_the_corrected_label_stands_in_place_of_the_old_one() -> None:
    spec = line(negative_rate=0.5)
    samples = filled(
        sample_schema(spec), [sample(number, int(number % 5 == 0)) for number in range(99)]
    )
    cases = filled(case_schema(spec), [case(5, 1, 0), case(7, 0, 1), case(1_000, 0, 1)])
    rows, count = relabelled(spec, samples, cases)
    plain = thin_negatives(spec, samples)
    assert count == 2
    assert weights(rows) == weights(plain) | {"i5": (0, 10), "i7": (10, 0)}
    offsets = rows["impression_offset"].to_pylist()
    assert offsets == sorted(offsets)
    untouched, none = relabelled(spec, samples, cases.slice(2))
    assert none == 0 and untouched.equals(plain)


def test_cases_are_spread_between_the_rows_which_keep_their_order() -> None:
    spec = line()
    rows = filled(sample_schema(spec), [sample(number, 0) for number in range(100)])
    cases = as_learned(spec, filled(case_schema(spec), [case(n, 0, 1) for n in range(200, 204)]))
    both = among(rows, cases)["impression_offset"].to_numpy()
    assert both[both < 200].tolist() == list(range(100))
    assert np.flatnonzero(both >= 200).tolist() == [13, 39, 65, 91]
    assert among(rows, cases.slice(0, 0)) is rows


HEADER = "line,impression_id,served_at,label,corrected_label\n"


def read(tmp_path: Path, text: str) -> sheet.Sheet:
    path = tmp_path / "cases.csv"
    path.write_text(text, encoding="utf-8")
    return sheet.read(line(), path)


def test_each_row_is_sound_open_or_refused_with_its_reason(tmp_path: Path) -> None:
    told = read(
        tmp_path,
        "\ufeff" + HEADER + "coupons,a,2026-11-20T08:00:00.000001Z,0,1\n"
        "coupons,b,2026-11-20T08:00:00Z,0,\n"
        "flights,c,2026-11-20T08:00:00Z,0,1\n"
        "coupons,d,2026-11-20T08:00:00Z,0,yes\n"
        "coupons,e,20.11. 8:00,0,1\n"
        "coupons,f,2026-11-20T08:00:00Z,0,1\n"
        "coupons,f,2026-11-20T08:00:00Z,0,0\n"
        "coupons,g,2026-11-20T08:00:00Z,0,1,what\n"
        "coupons,,2026-11-20T08:00:00Z,0,1\n",
    )
    (answer,) = told.answers
    assert (answer.impression_id, answer.label, answer.corrected) == ("a", 0, 1)
    assert answer.served_us % 1_000_000 == 1
    assert told.open == 1
    reasons = {each.place: each.reason for each in told.refused}
    assert reasons.keys() == set(range(4, 11))
    for place, said in {
        4: "line 'flights' is not 'coupons'; import it with --line flights",
        5: "corrected_label 'yes' is neither 0 nor 1",
        6: "served_at '20.11. 8:00' is not a time",
        7: "impression_id 'f' is labelled 2 times; keep one",
        8: "impression_id 'f' is labelled 2 times; keep one",
        9: "has not the 5 cells of the header",
        10: "impression_id is empty",
    }.items():
        assert said in reasons[place]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no column 'line'"),
        (HEADER.replace(",", ";"), "has no column 'line'"),
        (HEADER.replace("served_at", "when"), "has no column 'served_at'"),
        (HEADER + 'coupons,"a"b,2026-11-20,0,1\n', "line 2 is no CSV"),
    ],
)
def test_a_file_that_is_no_sheet_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(tmp_path, text)


def test_a_file_in_another_encoding_or_none_at_all_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    with pytest.raises(InputError, match="not readable"):
        sheet.read(line(), path)
    path.write_bytes(HEADER.encode("utf-16"))
    with pytest.raises(InputError, match="is not UTF-8"):
        sheet.read(line(), path)


def test_a_sheet_of_too_many_answers_is_refused_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheet, "MOST_ROWS", 2)
    rows = [f"coupons,{name},2026-11-20,0,1\n" for name in "abc"]
    with pytest.raises(InputError, match="3 labelled rows, at most 2; split it"):
        read(tmp_path, HEADER + "".join(rows))
