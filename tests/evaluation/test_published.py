"""Published numbers: every one has a source, the paper's own averages agree, warnings are given."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict

import pytest

from t4s_helpers.evaluation.published import FIELDS, NEVER, PublishedError, beside, read_published

NUMBERS = read_published()


def test_every_table_of_the_paper_is_there():
    counts = Counter(row["file"].removeprefix("text4seg_").removesuffix(".csv") for row in NUMBERS)
    paper = {"table1_res": 18 * 9, "table2_gres": 12 * 7, "table3_rec": 21 * 9,
             "table5_semantic": 8 * 3 - 1,  # MaskCLIP has no number on PAS-20
             "table6_refiner": 4 * 3, "table8_refiner": 4 * 9}
    assert paper.items() <= counts.items()
    assert {"gsva", "ras", "table4_vqa"} <= set(counts)


@pytest.mark.parametrize("file", ["text4seg_table1_res", "text4seg_table2_gres", "text4seg_table3_rec"])
def test_the_averages_of_the_paper_are_those_of_its_numbers(file):
    """Copying errors would show: each line's last number is the mean of the others."""
    lines = defaultdict(lambda: ([], []))
    for row in NUMBERS:
        if row["file"] == f"{file}.csv":
            key = row["method"], row["model"], row["group"]
            lines[key][row["split"].startswith("mean")].append(row["value"])
    for key, (values, (mean,)) in lines.items():
        assert len(values) in (6, 8) and mean == pytest.approx(sum(values) / len(values), abs=0.15), key


def test_tables_6_and_8_agree_where_they_overlap():
    six, eight = ({(r["group"], r["dataset"], r["metric"]): r["value"] for r in NUMBERS
                   if r["file"] == f"text4seg_table{n}_refiner.csv"} for n in (6, 8))
    assert six.items() <= eight.items()


def test_values_are_percent_or_seconds_and_have_addresses():
    for row in NUMBERS:
        assert row["unit"] in ("%", "s") and 0 <= row["value"] <= 100
        assert row["url"].startswith("https://")


def record(**changes):
    settings = {"backbone": "llava-1.5-7b", "refiner": "sam_vit_h", "quantized": False, **changes}
    return {"settings": settings, "data": {"name": "refcoco", "split": "val"}}


LINE = {"who": "model", "task": "res", "n": 10_834, "excluded": 0, "ciou": 0.79, "acc50": 0.9}


def test_a_run_stands_beside_its_own_data_set_and_split_only():
    rows = beside([LINE, {**LINE, "who": "ceiling"}], record(), NUMBERS)
    assert rows and {row["dataset"] for row in rows} == {"refcoco val"}
    assert {row["metric"] for row in rows} == {"ciou", "acc50"}
    plain = [row for row in rows if row["method"] == "Text4Seg LLaVA-1.5-7B" and "Table 1" in row["source"]]
    assert plain[0]["published"] == 79.3 and plain[0]["run"] == 79.0


@pytest.mark.parametrize(("line", "made", "words"), [
    ({}, record(refiner="none"), "no refiner here"),
    ({"n": 100}, record(), "a part of the split (100 of 10834)"),
    ({"n": 10_800, "excluded": 34}, record(), "34 samples left out"),
    ({}, record(quantized=True), "4-bit weights"),
    ({}, record(backbone="embedded"), NEVER),
    ({}, {**record(), "data": {"name": "scenes", "split": "test"}}, NEVER),
])
def test_what_stands_against_a_comparison_is_said(line, made, words):
    rows = beside([{**LINE, **line}], made, NUMBERS)
    assert rows and all(words in row["warning"] for row in rows if "refiner None" not in row["source"]
                        and row["source"].startswith("Table 1"))


def test_the_embedded_model_is_never_comparable():
    made = {**record(backbone="embedded", refiner="mobile_sam"), "data": {"name": "scenes", "split": "test"}}
    for task in ("res", "gres", "rec", "semantic", "vqa"):
        line = {**LINE, "task": task, "giou": 0.5, "miou": 0.5, "accuracy": 0.5}
        rows = beside([line], made, NUMBERS)
        assert rows and {row["warning"] for row in rows} == {NEVER}


@pytest.mark.parametrize(("change", "words"), [
    ({"url": ""}, "does not say where"), ({"value": "about 70"}, "holds no number"),
])
def test_a_number_without_a_source_is_refused(tmp_path, change, words):
    with (tmp_path / "x.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerow({**dict.fromkeys(FIELDS, "x"), "value": "1", **change})
    with pytest.raises(PublishedError, match=f"Line 2 .*{words}"):
        read_published(tmp_path)
    with pytest.raises(PublishedError, match="holds no published"):
        read_published(tmp_path / "none")
