"""The official reading, and the same rows under two protocols, against numbers made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from t4s_helpers.codec.encodings import get_encoding
from t4s_helpers.data.sample import Sample
from t4s_helpers.decoding.generate import Answer
from t4s_helpers.evaluation.conventions import OFFICIAL, PROTOCOLS, STRICT, official_grid
from t4s_helpers.evaluation.scoring import NoCommonScore, compare_protocols, hardest, score_rows
from t4s_helpers.evaluation.tasks import Protocol, TaskError, reread, row_of, turn_of
from t4s_helpers.refine import NoRefiner

WIDE = get_encoding("rrle", (2, 4))
SHORT = "others *2|dog *1\nothers *1|dog *3"  # a cell is missing in the first row
SHIFTED = [[0, 0, 1, 0], [1, 1, 1, 1]]


def spaced(text: str) -> str:
    return text.replace("|", "| ").replace("\n", "\n ") + "\n"


@pytest.mark.parametrize("spell", [str, spaced])
@pytest.mark.parametrize(("text", "grid"), [
    ("others *3|dog *1\ndog *4", [[0, 0, 0, 1], [1, 1, 1, 1]]),
    (SHORT, SHIFTED),
    ("others *2|dog *2", [[0, 0, 1, 1], [1, 1, 1, 1]]),  # what is missing has the last label
    ("others *4\ndog *2|others *9\ndog *4", [[0] * 4, [1, 1, 0, 0]]),
    ("others *4\ndog *1|cat *2|others *1", [[0] * 4, [1, 1, 1, 0]]),  # whatever its name
    ("dog *4\ndog *4", [[0] * 4] * 2),  # no others, so the first label is nothing
    ("cat *4\ndog *4", [[0] * 4, [1] * 4]),
    ("dog *8\nothers *1", [[1] * 4] * 2),  # the others that are cut off count for that
    ("others *3|dog *9999999999\ndog *-2", [[0, 0, 0, 1], [1] * 4]),
    ("others *4\ndog *4|", [[0] * 4] * 2),  # one bad run empties the answer
    ("others *4\ndog *three", [[0] * 4] * 2),
    ("others *4\ndog", [[0] * 4] * 2),
    ("dog *0", [[0] * 4] * 2),
])
def test_a_text_is_read_as_the_official_evaluation_reads_it(spell, text, grid):
    for answer in (f"Sure:\n<seg>{spell(text)}</seg>", f"<seg>{spell(text)}"):
        assert official_grid(answer, WIDE).tolist() == grid


def test_tags_and_spellings_that_the_official_evaluation_does_not_read():
    for text in ("", "I see none.", SHORT, f"The <seg> is:\n<seg>{SHORT}</seg>", "<seg></seg>",
                 "<seg>others *3| dog *1\ndog *4</seg>"):  # half in one spelling, half in the other
        assert not official_grid(text, WIDE).any(), text


def test_the_other_encodings_have_no_rows_and_perhaps_no_counts():
    assert official_grid("<seg>others *5|dog *3</seg>", get_encoding("irle", (2, 4))).tolist() == [
        [0] * 4, [0, 1, 1, 1]]
    assert official_grid("<seg>others|dog|others</seg>", get_encoding("full", 2)).tolist() == [[0, 1], [0, 0]]


def made(name: str, truth, text: str, protocol=Protocol(WIDE), **options) -> dict:
    mask = np.array(truth, bool)[None]
    sample = Sample(name, np.zeros((*mask.shape[1:], 3), np.uint8), ("dog",), mask, "gres", **options)
    parsed = protocol.conventions.read(text, ["dog"], sample.size, protocol.encoding)
    return json.loads(json.dumps(row_of(sample, Answer(text, 9, True, 0.5), parsed, protocol)))


NONE, ALL = [[0] * 4] * 2, [[1] * 4] * 2
CASES = [("short", [[0, 0, 1, 0], [0, 1, 1, 1]], f"<seg>{SHORT}</seg>"),  # strict 4/4, official 4/5
         ("unreadable", NONE, "I see no dog."),  # strict 0, official a rejection
         ("full", ALL, "<seg>dog *4\ndog *4</seg>"),  # strict 8/8, official 0/8
         ("nothing", NONE, "<seg>others *4\nothers *4</seg>")]
BY_HAND = {"strict": {"ciou": 12 / 12, "giou": 3 / 4, "n_acc": 1 / 2, "t_acc": 1},
           "official": {"ciou": 4 / 13, "giou": (0.8 + 1 + 0 + 1) / 4, "n_acc": 1, "t_acc": 1 / 2}}


def test_the_same_rows_under_both_protocols_by_hand():
    rows = [*(made(*case) for case in CASES), {"id": "x", "task": "gres", "excluded": "unreadable image"},
            {"id": "y", "task": "vqa"}]
    found = compare_protocols(rows, WIDE)
    assert [(one["protocol"], one["metric"]) for one in found] == [
        (name, metric) for name, metrics in BY_HAND.items() for metric in metrics]
    for one in found:
        assert one["value"] == pytest.approx(BY_HAND[one["protocol"]][one["metric"]]), one
    with_target = compare_protocols([made(*CASES[0])], WIDE, [STRICT])
    assert [one["metric"] for one in with_target] == ["ciou", "giou", "t_acc"]


def test_reading_again_gives_the_rows_that_a_run_would_have_made():
    for name, protocol in ((name, Protocol(WIDE, conventions=PROTOCOLS[name])) for name in BY_HAND):
        rows = [made(*case, protocol) for case in CASES]
        scores = score_rows(rows)
        assert scores["ciou"] == pytest.approx(BY_HAND[name]["ciou"]) and scores["n_malformed"] == 2
        assert scores["n_acc"] == BY_HAND[name]["n_acc"]
        for other in BY_HAND:
            again = [reread(made(*case, Protocol(WIDE, conventions=PROTOCOLS[other])), protocol)
                     for case in CASES]
            assert [{**one, "after_seconds": 0} for one in again] == [
                {**one, "after_seconds": 0} for one in rows]
    official = [made(*case, Protocol(WIDE, conventions=OFFICIAL)) for case in CASES]
    assert [one["id"] for one in hardest(official, 2)] == ["full", "short"]
    with pytest.raises(NoCommonScore, match="official', 'strict"):
        score_rows([made(*CASES[0]), official[1]])


def test_a_row_without_its_true_mask_is_not_read_again():
    ignored = made(*CASES[0], meta={"ignore": np.array(ALL, bool)})
    with pytest.raises(TaskError, match="'short' holds no true mask"):
        compare_protocols([ignored], WIDE)


def test_the_lenient_protocol_counts_a_near_label():
    text = "<seg>others *4\nDog *4</seg>"
    values = [one["value"] for one in compare_protocols(
        [made("near", [[0] * 4, [1] * 4], text)], WIDE, [STRICT, PROTOCOLS["lenient"]], ["ciou"])]
    assert values == [0, 1]


def test_cells_become_pixels_by_corner_or_by_centre():
    text, narrow = "<seg>others *1|dog *1</seg>", get_encoding("rrle", (1, 2))
    by_centre, by_corner = (one.read(text, ["dog"], (1, 5), narrow).masks[0, 0].tolist()
                            for one in (STRICT, OFFICIAL))
    assert by_centre == [False, False, True, True, True] and by_corner == [False, False, False, True, True]


class Recorder(NoRefiner):
    def refine(self, masks, seed=0, **options):
        self.options = options
        return super().refine(masks, seed)


@pytest.mark.parametrize(("name", "told"), [
    ("strict", set()), ("lenient", set()), ("official", {"prompts", "min_iou", "confidence"}),
    ("official-2024", {"prompts", "min_iou"})])
def test_each_protocol_tells_the_refiner_its_own(name, told):
    how, refiner = PROTOCOLS[name], Recorder("recorder")
    sample = Sample("s", np.zeros((6, 8, 3), np.uint8), ("dog",), np.ones((1, 6, 8), bool), "res")
    text = f"<seg>{SHORT}</seg>"
    parsed = how.read(text, ["dog"], (6, 8), WIDE)
    row_of(sample, Answer(text, 9, True, 0.5), parsed, Protocol(WIDE, conventions=how), refiner)
    assert set(refiner.options) == told
    if "confidence" in told:
        assert refiner.options["confidence"][0].tolist() == SHIFTED
        assert refiner.options["prompts"].n_points == 10 and refiner.options["min_iou"] == 0


def test_the_official_question_is_the_one_in_the_paper():
    sample = Sample("s", np.zeros((2, 4, 3), np.uint8), ("a {dog}",), np.ones((1, 2, 4), bool), "res")
    official = Protocol(conventions=OFFICIAL)
    assert turn_of(sample, official).question == "Can you segment the a {dog} in the image?"
    assert turn_of(sample, Protocol()).question == "Segment a {dog}."
    assert "protocol" not in Protocol().plain(), "a strict run keeps the settings that it always had"
    assert json.loads(json.dumps(official.plain()))["protocol"]["min_iou"] == 0
