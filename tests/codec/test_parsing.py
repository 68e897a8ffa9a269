"""Tolerant parsing: exact on well-formed text, a grid and an honest report on all else."""

from __future__ import annotations

import random
from time import process_time
from timeit import repeat

import numpy as np
import pytest
from codec_strategies import labelled_grids, quick
from hypothesis import given, settings
from hypothesis import strategies as st

from t4s_helpers.codec.encodings import check_labels, get_encoding, wrap
from t4s_helpers.codec.parsing import ParseReport, parse, read_runs

names = st.sampled_from(["full", "irle", "rrle"])

# Three rows of four cells; used by the hand-made cases below.
GRID = [[0, 0, 1, 1], [1, 1, 1, 1], [0, 2, 2, 0]]
LABELS = ["dog", "red cat"]
RRLE = "others *2|dog *2\ndog *4\nothers *1|red cat *2|others *1"


def read(text: str, name: str = "rrle") -> tuple[list[list[int]], ParseReport]:
    grid, report = parse(text, LABELS, get_encoding(name, (3, 4)))
    assert grid.shape == (3, 4) and grid.dtype == np.int32
    return grid.tolist(), report


def faults(report: ParseReport) -> dict[str, object]:
    """What the report counts, without what is zero or describes the surroundings."""
    names = ("rows_padded", "rows_dropped", "cells_padded", "cells_dropped", "bad_runs", "unknown")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


@quick
@given(labelled_grids(), names, st.booleans(), st.booleans(), st.text(max_size=9))
def test_well_formed_text_is_read_as_decode_reads_it(case, name, spaced, tagged, sentence):
    grid, labels = case
    text = get_encoding(name, grid.shape, spaced).encode(grid, labels)
    answer = wrap(text, sentence) if tagged else text
    back, report = parse(answer, labels, get_encoding(name, grid.shape))
    assert np.array_equal(back, grid)
    assert report.ok and not report.malformed and not faults(report)
    assert report.found_seg == report.closed == tagged
    assert report.rows_found == len(grid)
    assert report.no_target == (not grid.any())


MARKS = ["|", "\n", "\n\n", " ", "*", " *", " *0", " *3", " *99999", "-1", "\\", "<seg>", "</seg>",
         "</se", "others", "others *2|", "cat *1", "\r\n", "٣", "²", "\x00", "\ud800", "9" * 5000]


def mutate(text: str, rng: random.Random) -> str:
    """Delete, double, swap or insert something, a few times."""
    for _ in range(rng.randint(1, 6)):
        a, b = sorted(rng.randint(0, len(text)) for _ in range(2))
        text = rng.choice([
            text[:a] + text[b:], text[:b] + text[a:], text[:a] + rng.choice(MARKS) + text[a:],
            text[:a] + text[a:b][::-1] + text[b:], text[:a],
        ])
        text = text[:50_000]
    return text


@settings(quick, max_examples=80)
@given(labelled_grids(max_side=20), names, st.booleans(), st.randoms(use_true_random=False))
def test_parse_never_raises(case, name, spaced, rng):
    grid, labels = case
    answer = wrap(get_encoding(name, grid.shape, spaced).encode(grid, labels), "Here it is.")
    for text in (mutate(answer, rng), mutate(answer[13:-6], rng)):
        back, report = parse(text, labels, get_encoding(name, grid.shape))
        assert back.shape == grid.shape and back.dtype == np.int32
        assert back.min() >= 0 and back.max() <= len(check_labels(labels))
        assert report.ok == (not report.malformed)
        assert not (report.ok and faults(report))
        assert not (report.no_target and (report.malformed or back.any()))
        assert parse(text, labels, get_encoding(name, grid.shape), lenient=True)[1].near == report.near
        assert report.summary().count("\n") == 0 and report.summary().endswith(".")
        rows = len(grid)
        assert report.rows_found == rows - report.rows_padded + report.rows_dropped
        assert 0 <= report.rows_padded <= rows
        assert 0 <= report.rows_padded * grid.shape[1] + report.cells_padded <= grid.size


@quick
@given(st.text(), names)
def test_parse_never_raises_on_any_text(text, name):
    back, report = parse(text, LABELS, get_encoding(name, (3, 4)))
    assert back.shape == (3, 4)
    assert not report.no_target


@settings(quick, max_examples=40)
@given(labelled_grids(max_side=20), st.booleans(), st.data())
def test_damage_in_one_row_stays_in_it(case, spaced, data):
    """Whatever happens to the runs of one row, every other row is read as it was."""
    grid, labels = case
    line_break = "\n " if spaced else "\n"
    text = get_encoding("rrle", grid.shape, spaced).encode(grid, labels)
    lines = text.removesuffix("\n" if spaced else "").split(line_break)
    r = data.draw(st.integers(0, len(lines) - 1))
    junk = st.sampled_from(["others *3", "cat", "*", "dog *0", "others *9999", "", "x *2", "*2|"])
    lines[r] = data.draw(junk) + "|" + data.draw(junk)
    text = wrap(line_break.join(lines) + ("\n" if spaced else ""), "")
    back, report = parse(text, labels, get_encoding("rrle", grid.shape))
    others = np.arange(len(grid)) != r
    assert np.array_equal(back[others], grid[others])
    assert report.rows_padded == report.rows_dropped == 0
    assert report.rows_found == len(grid)


PIECES = ["<seg>", "</seg>", "others", " *3", " *2", " *1", "|", "\n", "dog", "cat", "DOG", " ", "*0", "*99",
          "\n ", "| ", "\n\n", "Here:"]


def test_the_parts_of_any_text_are_the_text_and_its_grid_and_show_what_is_amiss():
    rng = random.Random(1)
    for _ in range(2000):
        encoding = get_encoding(rng.choice(["rrle", "irle", "full"]), rng.choice([2, 3, (2, 3)]))
        text = rng.choice(["", "<seg>"]) + "".join(rng.choices(PIECES, k=rng.randrange(30)))
        grid, report = parse(text, ["dog"], encoding)
        runs = read_runs(text, ["dog"], encoding)
        assert "".join(run.text for run in runs) == text
        cells = np.zeros(grid.size, int)
        for run in runs:
            cells[list(run.cells)] = run.label
            assert run.label >= 0 or not run.cells
        assert np.array_equal(cells.reshape(grid.shape), grid)
        assert any(run.fault for run in runs) == (not report.ok) or not text


def test_spellings():
    for text in (
        RRLE,
        RRLE + "\n",
        RRLE.replace("|", "| "),
        RRLE.replace("\n", "\n ") + "\n",
        RRLE.replace("|", "| ").replace("\n", "\n ") + "\n",
        RRLE.replace("|", " | ").replace("\n", " \n"),
        RRLE.replace("\n", "\r\n"),
        RRLE.replace(" *", "*"),
        RRLE.replace(" *", " * "),
        RRLE.replace("red cat", "red  cat"),
        "\n" + RRLE + "\n\n",
    ):
        for answer in (text, f"<seg>{text}</seg>", f"Sure.\n<seg>{text}</seg>\n"):
            grid, report = read(answer)
            assert grid == GRID, answer
            assert report.ok and not faults(report), answer


def test_unicode_that_a_tokenizer_composes():
    decomposed, composed = "cafe\u0301 table", "caf\u00e9 table"
    for label, written in ((decomposed, composed), (composed, decomposed)):
        grid, report = parse(f"{written} *2", [label], get_encoding("rrle", (1, 2)))
        assert grid.tolist() == [[1, 1]] and report.ok


@pytest.mark.parametrize(
    ("name", "text", "grid", "expected"),
    [
        # a short row is filled up, a long one cut; later rows stay where they are
        ("rrle", RRLE.replace("dog *4", "dog *3"),
         [GRID[0], [1, 1, 1, 0], GRID[2]], {"cells_padded": 1}),
        ("rrle", RRLE.replace("dog *4", "dog *4|others *2"), GRID, {"cells_dropped": 2}),
        ("rrle", RRLE.replace("dog *4", ""),
         [GRID[0], [0] * 4, GRID[2]], {"cells_padded": 4, "bad_runs": 1}),
        # rows missing, too many, blank lines between
        ("rrle", "\n".join(RRLE.split("\n")[:2]), [*GRID[:2], [0] * 4], {"rows_padded": 1}),
        ("rrle", RRLE + "\ndog *4\nothers *4", GRID, {"rows_dropped": 2}),
        ("rrle", RRLE.replace("\n", "\n\n"), GRID, {"rows_dropped": 2}),
        # labels and counts
        ("rrle", RRLE.replace("red cat", "blue cat"),
         [*GRID[:2], [0] * 4], {"unknown": {"blue cat": 1}}),
        ("rrle", RRLE.replace("dog", "dgo"),
         [[0] * 4, [0] * 4, GRID[2]], {"unknown": {"dgo": 2}}),
        ("rrle", RRLE.replace("red cat *2", "red cat"),
         [*GRID[:2], [0, 2, 0, 0]], {"bad_runs": 1, "cells_padded": 1}),
        ("rrle", RRLE.replace("dog *4", "dog *"),
         [GRID[0], [1, 0, 0, 0], GRID[2]], {"bad_runs": 1, "cells_padded": 3}),
        ("rrle", RRLE.replace("dog *4", "dog *0"),
         [GRID[0], [0] * 4, GRID[2]], {"bad_runs": 1, "cells_padded": 4}),
        ("rrle", RRLE.replace("dog *4", "dog *-4"),
         [GRID[0], [1, 0, 0, 0], GRID[2]], {"bad_runs": 1, "cells_padded": 3}),
        ("rrle", RRLE.replace("dog *4", "dog *40"), GRID, {"bad_runs": 1}),
        ("rrle", RRLE.replace("dog *4", "dog *" + "9" * 6000), GRID, {"bad_runs": 1}),
        ("rrle", RRLE.replace("dog *4", "dog *1|dog *" + "9" * 6000), GRID,
         {"bad_runs": 1, "cells_dropped": 1}),
        ("rrle", RRLE.replace("|", "||"), GRID, {"bad_runs": 3}),
        ("rrle", RRLE + "|", GRID, {"bad_runs": 1}),
        ("rrle", "others|others|dog|dog\ndog *4\nothers|red cat|red cat|others",
         GRID, {"bad_runs": 8}),
        ("rrle", "", [[0] * 4] * 3, {"rows_padded": 3}),
        # image-wise runs
        ("irle", "others *2|dog *6|others *1|red cat *2|others *1", GRID, {}),
        ("irle", RRLE, GRID, {}),
        ("irle", "others *2|dog *5", [[0, 0, 1, 1], [1, 1, 1, 0], [0] * 4],
         {"rows_padded": 1, "cells_padded": 1}),
        ("irle", "others *2|dog *6|others *9", [*GRID[:2], [0] * 4],
         {"rows_dropped": 1, "cells_dropped": 1}),
        ("irle", "others *2|dog *13", [GRID[0], [1] * 4, [1] * 4],
         {"bad_runs": 1, "cells_dropped": 2}),
        ("irle", "", [[0] * 4] * 3, {"rows_padded": 3}),
        # a label per cell
        ("full", "others|others" + "|dog" * 6 + "|others|red cat|red cat|others", GRID, {}),
        ("full", "others|others" + "|dog" * 6 + "\nothers|red cat|red cat|others\n", GRID, {}),
        ("full", "others|others" + "|dog" * 6 + "|others|cat|red cat",
         [*GRID[:2], [0, 0, 2, 0]], {"unknown": {"cat": 1}, "cells_padded": 1}),
        ("full", "others|others|dog *6|others|red cat|red cat|others|dog", GRID,
         {"bad_runs": 1, "cells_dropped": 1}),
        ("full", "others|dog *x" + "|others" * 10, [[0, 1, 0, 0], [0] * 4, [0] * 4],
         {"bad_runs": 1}),
        ("full", "", [[0] * 4] * 3, {"rows_padded": 3}),
    ],
)
def test_repairs_by_hand(name, text, grid, expected):
    for answer in (text, f"Here.\n<seg>{text}</seg>"):
        found, report = read(answer, name)
        assert found == grid
        assert faults(report) == expected
        assert report.ok == (not expected)
        assert not report.no_target


def test_tags_and_surroundings():
    grid, report = read(f"It is here.\n<seg>{RRLE}</seg> Anything else? <seg>no</seg>")
    assert grid == GRID and report.ok
    assert report.before == "It is here." and report.after == "Anything else? <seg>no</seg>"

    grid, report = read(f"It is here.\n<seg>{RRLE}")
    assert grid == GRID and report.found_seg and not report.closed and report.malformed
    assert report.summary() == "Malformed: no </seg>."

    for torn in ("<", "</s", "</seg"):
        for start in ("<seg>", ""):
            grid, report = read(start + RRLE + torn)
            assert grid == GRID and not faults(report) and report.malformed, torn

    grid, report = read(f"{RRLE}</seg>")  # the opening tag was part of the prompt
    assert grid == GRID and report.ok and report.closed and not report.found_seg

    grid, report = read(f"Sure, where the dog is:\n{RRLE}")
    assert grid == GRID and report.malformed and not faults(report)
    assert report.before == "Sure, where the dog is:"
    assert report.summary() == "Malformed: text without <seg>."

    grid, report = read(f"The <seg> of it:\n<seg>{RRLE}</seg>")
    assert grid == GRID and report.ok and report.before == "The <seg> of it:"


def test_no_target_is_never_a_broken_answer():
    nothing = "others *4\nothers *4\nothers *4"
    for text in (nothing, f"None here.\n<seg>{nothing}</seg>"):
        _, report = read(text)
        assert report.no_target and "every cell is others" in report.summary()
    for text in ("", "I see no dog.", "<seg></seg>", f"<seg>{nothing}", nothing[:-1],
                 nothing.replace("others", "cat"), f"<seg>{nothing[:19]}</seg>"):
        grid, report = read(text)
        assert not np.any(grid) and report.malformed and not report.no_target, text


def test_prose_alone_is_no_row():
    _, report = read("I am sorry, I can not do that.\nReally.")
    assert report.rows_found == 0 and report.rows_padded == 3 and not report.unknown
    assert report.before.startswith("I am sorry")


def test_unknown_labels_are_shown_as_the_user_types_them():
    _, report = parse("a\\pb *1|c *1|" + "x" * 300 + " *1", ["c"], get_encoding("rrle", (1, 3)))
    assert report.unknown == {"a|b": 1, "x" * 80: 1}
    assert "'a|b' x1" in report.summary()


def lenient(text: str, labels: list[str]) -> tuple[list[int], ParseReport]:
    grid, report = parse(text, labels, get_encoding("rrle", (1, 4)), lenient=True)
    return grid[0].tolist(), report


@pytest.mark.parametrize(("written", "asked"), [
    ("Dog", "dog"), ("man left", "man, left"), ("man, left", "man left"), ("brown dog", "the brown dog"),
    ("The brown dog.", "brown dog"), ("a 'brown' dog", "an brown dog"), ("ÉTÉ", "e\u0301te\u0301"),
    ("a\\pb!", "a|b"), ("the", "THE"),
])
def test_a_near_label_is_named_and_counts_in_the_lenient_reading_alone(written, asked):
    text, labels = f"others *1|{written} *3", ["umbrella", asked]
    grid, strict = parse(text, labels, get_encoding("rrle", (1, 4)))
    name = written.replace("\\p", "|")
    assert not grid.any() and strict.unknown == {name: 1}
    found, report = lenient(text, labels)
    assert found == [0, 2, 2, 2] and not report.unknown and report.lenient
    for one in (strict, report):  # a guess, so the answer is not well-formed in either reading
        assert one.near == {name: asked} and one.malformed and one.verdict == "near label"
        assert f"near labels: {name!r} for {asked!r}" in one.summary()


@pytest.mark.parametrize(("written", "asked"), [
    ("brwon dog", ["brown dog"]), ("dogs", ["dog"]), ("dog the", ["dog"]), ("vitamin", ["vitamin a"]),
    ("DOG", ["dog", "Dog"]), ("the dog", ["dog!", "a dog"]), ("...", ["???", "dog"]),
])
def test_a_label_near_to_none_or_to_several_stays_unknown(written, asked):
    found, report = lenient(f"{written} *4", asked)
    assert found == [0] * 4 and report.unknown == {written: 1} and not report.near
    assert report.verdict == "unknown label"


def test_others_may_be_near_too_and_exact_labels_need_no_lenience():
    found, report = lenient("Others *2|dog *1|cat *1", ["dog"])
    assert found == [0, 0, 1, 0] and report.near == {"Others": "others"} and report.unknown == {"cat": 1}
    assert report.summary() == "Malformed: unknown labels: 'cat' x1, near labels: 'Others' for 'others'."
    assert lenient("others *2|Dog *2", ["dog", "Dog"])[1].ok


@pytest.mark.parametrize("text", [
    "dog" + " " * 200_000 + "*", "*" * 200_000, "|" * 200_000, "\n" * 200_000,
    "e" + "\u0301\u0323" * 100_000, "dog *1|" * 30_000, "<seg>" * 40_000, "\\" * 200_000,
], ids=lambda text: repr(text[:6]))
def test_long_nonsense_takes_linear_time(text):
    """Each takes milliseconds of processor time; quadratic work would take seconds to hours."""
    start = process_time()
    parse(text, LABELS, get_encoding("rrle", (3, 4)))
    assert process_time() - start < 2


def test_speed_on_typical_grids():
    """Encode and parse of a 16x16 R-RLE grid in well under 150 µs; the best of many rounds."""
    y, x = np.mgrid[:16, :16] - 7.5
    rrle, grid = get_encoding(), ((y / 6) ** 2 + (x / 4) ** 2 <= 1).astype(int)

    def round_trip():
        return parse(wrap(rrle.encode(grid, ["the red cat"]), "Here."), ["the red cat"], rrle)[0]

    assert np.array_equal(round_trip(), grid)
    assert min(repeat(round_trip, number=20, repeat=30)) / 20 < 150e-6
