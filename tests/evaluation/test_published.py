"""Published numbers: every one has a source, the paper's own averages agree, warnings are given."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict

import pytest

from t4s_helpers.evaluation.published import (
    FIELDS, FOLDER, FULL, NEVER, WORK, PublishedError, beside, read_published, res_averages,
)

NUMBERS = read_published()
MASKS = {"text", "patch classes in one pass", "mask tokens", "image generation", "polygon", "embedding",
         "prompts for SAM", "choice of proposals"}


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


def test_the_averages_that_later_works_state_are_those_of_their_numbers():
    lines = defaultdict(dict)
    for row in NUMBERS:
        if row["file"] == "other_work.csv" and row["metric"] == "ciou":
            key = row["dataset"], row["split"]
            assert key not in lines[row["method"], row["model"], row["reported_by"]], row
            lines[row["method"], row["model"], row["reported_by"]][key] = row["value"]
    checked = 0
    for line, found in lines.items():
        mean = found.pop((", ".join(FULL), "mean of 8"), None)
        if mean is not None and len(found := {k: v for k, v in found.items() if k[0] in FULL}) == 8:
            checked += 1
            assert mean == pytest.approx(sum(found.values()) / 8, abs=0.11), line
    assert checked >= 18


def test_every_work_has_numbers_and_says_how_it_writes_masks():
    with (FOLDER / "works.csv").open(newline="") as file:
        works = list(csv.DictReader(file))
    assert len({(work["method"], work["model"]) for work in works}) == len(works)
    have = {(row["method"].split(" (")[0], model) for row in NUMBERS for model in (row["model"], "")}
    for work in works:
        assert (work["method"], work["model"]) in have and work["url"].startswith("https://")
        assert work["mask"] in MASKS and re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", work["date"])


def test_numbers_carry_what_is_known_of_their_work():
    def of(method, model="", group=""):
        found = {tuple(row[key] for key in WORK) for row in NUMBERS
                 if row["method"] == method and row["model"] == model and group in row["group"]}
        assert len(found) == 1
        return dict(zip(WORK, found.pop(), strict=True))
    assert of("LISA (Lai et al., 2024)")["work"] == of("LISA")["work"] == "LISA"  # without the citation
    assert of("STAMP", "Qwen2-VL-7B")["refiner"] == "SAM-H"
    assert of("STAMP", "Qwen2-VL-7B, no SAM")["refiner"] == "none"  # the model's own line goes before
    assert of("Text4Seg", "InternVL2-8B", "refiner SAM-B")["refiner"] == "SAM-B"
    assert set(of("CARIS", "one model for all").values()) == {""}


def number(work, split, value, date="2025-01", model=""):
    dataset, split = split.split() if " " in split else (", ".join(FULL), "mean of 8")
    return {**dict.fromkeys((*FIELDS, *WORK), ""), "work": work, "method": work, "model": model, "date": date,
            "dataset": dataset, "split": split, "metric": "ciou", "value": value}


def test_a_works_average_needs_all_eight_splits_or_is_the_one_that_was_stated():
    splits = [f"{name} {split}" for name, known in FULL.items() for split in known]
    rows = [number("whole", split, k, "2025-03", model) for model, low in (("small", 0), ("large", 10))
            for k, split in enumerate(splits, low)]
    rows += [number("seven", split, 90.0) for split in splits[:7]]
    rows += [number("undated", split, 90.0, "") for split in splits]
    rows += [number("stated", splits[0], 99.0, "2024-12"), number("stated", "mean", 70.0, "2024-12")]
    rows += [{**number("seven", splits[7], 90.0), "metric": "giou"}]
    assert [(row["work"], row["model"], row["value"]) for row in res_averages(rows)] == [
        ("stated", "", 70.0), ("whole", "large", 13.5)]


def test_the_averages_over_time():
    means = {row["work"]: round(row["value"], 1) for row in res_averages()}
    assert means.items() >= {"Text4Seg": 76.2, "Text4Seg, no SAM": 71.4, "STAMP, no SAM": 76.2, "LISA": 70.1,
                             "X-SAM": 82.1, "HiMTok": 77.7, "Text4Seg++": 78.9}.items()
    assert not {"Sa2VA", "ARGenSeg", "SAMTok", "RAS"} & set(means)  # not all eight were read


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
    ({}, record(refiner="none"), "the refiner is none here, SAM ViT-H there"),
    ({"n": 100}, record(), "a part of the split (100 of 10834)"),
    ({"n": 10_800, "excluded": 34}, record(), "34 samples left out"),
    ({}, record(quantized=True), "4-bit weights"),
    ({}, record(backbone="embedded"), NEVER),
    ({}, {**record(), "data": {"name": "scenes", "split": "test"}}, NEVER),
])
def test_what_stands_against_a_comparison_is_said(line, made, words):
    rows = beside([{**LINE, **line}], made, NUMBERS)
    rows = [row for row in rows if row["source"].startswith("Table 1") and "Text4Seg" in row["method"]]
    assert rows and all(words in row["warning"] for row in rows)


@pytest.mark.parametrize(("refiner", "expected"), [("none", False), ("sam_vit_h", True)])
def test_a_refiner_on_one_side_only_is_said(refiner, expected):
    rows = [row for row in beside([LINE], record(refiner=refiner), NUMBERS) if row["group"] == "refiner None"]
    assert rows and {"the refiner is" in row["warning"] for row in rows} == {expected}


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
