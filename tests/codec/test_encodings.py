"""Grid <-> text: exact inverses, an independent oracle, refusals, token counts on real data."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from codec_strategies import NASTY, label_texts, labelled_grids, quick
from hypothesis import assume, example, given
from hypothesis import strategies as st
from shared_data import shared_data

from t4s_helpers.codec.encodings import (
    ENCODINGS, OTHERS, PAPER_ENCODINGS, DescriptorError, Encoding, check_labels, escape_label, get_encoding,
    unescape_label, wrap,
)
from t4s_helpers.codec.grid import masks_to_grid
from t4s_helpers.codec.parsing import parse

names = st.sampled_from(["full", "irle", "rrle"])


def encode(grid, labels, name="rrle", spaced=False):
    return get_encoding(name, np.shape(grid), spaced).encode(grid, labels)


def decode(text, labels, grid_size, name="rrle"):
    return get_encoding(name, grid_size).decode(text, labels)


GRID = np.array([[0, 0, 1], [1, 1, 1]])
TEXTS = {
    "full": "others|others|dog|dog|dog|dog",
    "irle": "others *2|dog *4",
    "rrle": "others *2|dog *1\ndog *3",
}


def oracle(grid: np.ndarray, labels: list[str], name: str, spaced: bool) -> str:
    """The same text from plain lists of words, by itertools.groupby."""
    words = [OTHERS, *(escape_label(label) for label in check_labels(labels))]
    rows = [[words[k] for k in row] for row in grid.tolist()]
    if name != "rrle":
        rows = [[word for row in rows for word in row]]
    if name != "full":
        rows = [[f"{w} *{len(list(run))}" for w, run in groupby(row)] for row in rows]
    bar, line_break, end = ("| ", "\n ", "\n") if spaced else ("|", "\n", "")
    return line_break.join(bar.join(row) for row in rows) + end


@pytest.mark.parametrize("name", TEXTS)
def test_by_hand(name):
    assert encode(GRID, ["dog"], name) == TEXTS[name]
    spaced = TEXTS[name].replace("|", "| ").replace("\n", "\n ") + "\n"
    assert encode(GRID, ["dog"], name, spaced=True) == spaced
    for text in (TEXTS[name], spaced):
        assert decode(text, ["dog"], (2, 3), name).tolist() == GRID.tolist()


@quick
@given(labelled_grids(), names, st.booleans())
@example((np.zeros((64, 64), np.uint8), ["dog"]), "irle", False)
@example((np.arange(64 * 64).reshape(64, 64) % (len(NASTY) + 1), NASTY), "full", True)
@example((np.ones((64, 1), int), NASTY), "rrle", True)
@example((np.ones((1, 64), int), NASTY), "rrle", False)
def test_round_trip_and_oracle(case, name, spaced):
    grid, labels = case
    text = encode(grid, labels, name, spaced)
    assert text == oracle(grid, labels, name, spaced)
    back = decode(text, labels, grid.shape, name)
    assert back.dtype == np.int32 and np.array_equal(back, grid)


@quick
@given(labelled_grids(max_side=8), names, st.booleans(), st.data())
def test_decode_accepts_only_what_encode_writes(case, name, spaced, data):
    """A text with one character changed is refused, or is another grid's own text."""
    grid, labels = case
    text = encode(grid, labels, name, spaced)
    at = data.draw(st.integers(0, len(text)))
    new = data.draw(st.sampled_from(["", "|", " ", "\n", "0", "1", "*", " *2", "\\", "o", "| "]))
    changed = text[:at] + new + text[at + data.draw(st.integers(0, 2)):]
    try:
        back = decode(changed, labels, grid.shape, name)
    except DescriptorError:
        return
    assert changed in {encode(back, labels, name, s) for s in (False, True)}


@quick
@given(labelled_grids(max_side=8), names, st.booleans())
def test_pieces(case, name, spaced):
    grid, labels = case
    parts = get_encoding(name, grid.shape, spaced).pieces(grid, labels)
    words = {OTHERS, *map(escape_label, check_labels(labels))}
    separators = {"| ", "\n ", "\n"} if spaced else {"|", "\n"}
    kinds = "".join(
        "w" if part in words else "s" if part in separators
        else "c" if part[:2] == " *" and part[2:].isdigit() else "?"
        for part in parts
    )
    run = "w" if name == "full" else "wc"
    n_runs = kinds.count("w")
    assert kinds == "s".join([run] * n_runs) + ("s" if spaced else "")
    assert "".join(parts) == encode(grid, labels, name, spaced)


@quick
@given(label_texts)
def test_escaping_is_exact_and_leaves_no_format_in_the_label(label):
    label = label.strip()
    assume(label)
    written = escape_label(label)
    assert unescape_label(written) == label
    assert not any(mark in written for mark in ("|", "\n", "\r", "<"))
    assert written == written.strip()
    _, star, tail = written.rpartition("*")
    assert not (star and tail.strip().isascii() and tail.strip().isdigit())


def test_plain_labels_are_written_as_they_are():
    for label in ("dog", "the 2nd dog, on the left (blue)", "5*7 photo", "50% > 3 * x", "héllo 犬"):
        assert escape_label(label) == label


@pytest.mark.parametrize(
    ("labels", "culprit"),
    [
        (["dog", "  "], "'  '"),
        (["dog", "others"], "'others'"),
        (["dog", " Others\n"], "'Others"[1:-1]),
        (["dog", "cat", "dog "], "'dog '"),
        (["a b", "a  b"], "'a  b'"),
        (["é", "e\u0301"], "'e\u0301'"),
        (["dog", 3], "3"),
        (["dog", "\ud800"], "ud800"),
        ([["dog"]], "['dog']"),
        ("dog", "'dog'"),
        (None, "None"),
    ],
)
def test_unusable_labels_are_named(labels, culprit):
    for use in (check_labels, lambda x: encode([[0]], x), lambda x: decode("others *1", x, 1),
                lambda x: parse("no descriptors", x, get_encoding("rrle", 4))):
        with pytest.raises(DescriptorError) as error:
            use(labels)
        assert culprit in str(error.value)


def test_labels_are_trimmed_and_text_like():
    assert check_labels([" dog ", np.str_("cat")]) == ("dog", "cat")
    assert check_labels([]) == ()
    assert type(check_labels([np.str_("cat")])[0]) is str
    assert encode([[1]], ["\tdog\n"]) == "dog *1"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("others *2|dog *1", "rrle", "the text has 1 rows, the grid needs 2"),
        ("others *2|dog *1\ndog *2", "rrle", "row 2, the text describes 2 cells instead of 3"),
        ("others *2|cat *1\ndog *3", "rrle", "row 1, run 2 ('cat *1') has the unknown label 'cat'"),
        ("others *2|dog\ndog *3", "rrle", "row 1, run 2 ('dog') has no valid count"),
        ("others *2|dog *01\ndog *3", "rrle", "has no valid count"),
        ("others *3\nothers *1|dog *1|others *1|others *1", "rrle", "row 2, run 4 ('others *1') repeats"),
        ("others *3\n3", "rrle", "row 2, run 1 ('3') has no valid count"),
        ("others *2|dog *5", "irle", "the text describes 7 cells instead of 6"),
        ("others|others|dog", "full", "the text describes 3 cells instead of 6"),
        ("others|others|dog|dog|cat|dog", "full", "cell 5 ('cat') has the unknown label 'cat'"),
        ("", "rrle", "rows"),
        ("", "full", "unknown label ''"),
        ("others *2|dog *4", "rle", "unknown encoding 'rle'"),
    ],
)
def test_decode_names_row_and_run(text, name, message):
    with pytest.raises(DescriptorError) as error:
        decode(text, ["dog"], (2, 3), name)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([[0, 2]], "the grid holds 2, but with 1 labels"),
        ([[0, -1]], "the grid holds -1"),
        ([0, 1], "2-D"),
        ([[0.0, 1.0]], "integers"),
        (np.zeros((65, 2), int), "from 1 to 64"),
        (np.zeros((0, 2), int), "from 1 to 64"),
        ([[0, 1, 0]], "1x2 grids, but the grid is 1x3"),
    ],
)
def test_unusable_grids(grid, message):
    with pytest.raises(ValueError, match=message):
        get_encoding("rrle", (1, 2)).encode(grid, ["dog"])


def test_wrap():
    assert wrap("others *1", "Sure:") == "Sure:\n<seg>others *1</seg>"
    with pytest.raises(DescriptorError, match="</seg>"):
        wrap("others *1", "Where the </seg> is:")
    assert wrap("others *1", f"Where the {escape_label('</seg>')} is:").endswith("</seg>")


def test_a_further_encoding_is_one_class():
    """Runs down the columns: another order of the cells, and everything else follows."""
    class ColumnRLE(Encoding):
        name, breaks_rows = "crle", True
        lines = property(lambda self: (self.cols, self.rows))
        arrange = staticmethod(np.transpose)
        restore = staticmethod(np.transpose)

    try:
        encoding = get_encoding("crle", (2, 3))
        text = encoding.encode(GRID, ["dog"])
        assert text == "others *1|dog *1\nothers *1|dog *1\ndog *2"
        assert (encoding.decode(text, ["dog"]) == GRID).all()
        grid, report = parse(f"<seg>{text}</seg>", ["dog"], encoding)
        assert report.ok and (grid == GRID).all()
        grid, report = parse(f"<seg>{text.removesuffix('2')}</seg>", ["dog"], encoding)
        assert report.cells_padded == 1 and (grid[:, :2] == GRID[:, :2]).all()
    finally:
        del ENCODINGS["crle"]


def test_token_counts_on_refcoco():
    """The reference point of shared/data/README.md: InternLM2 tokens of the bare descriptors.

    16x16, nearest rule (the pixel under the cell's centre), canonical spelling, the label being
    the sentence; no tags, no special tokens.
    """
    pytest.importorskip("pycocotools")
    from t4s_helpers.data.refer import load_refer

    tokenizers = pytest.importorskip("tokenizers")
    file = shared_data("refcoco_mini").parents[1] / "tokenizers" / "internlm2" / "tokenizer.json"
    if not file.is_file():
        pytest.skip(f"no tokenizer at {file}")
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    refcoco = load_refer(shared_data("refcoco_mini"))
    assert len(refcoco) == 96
    means = {}
    for name in PAPER_ENCODINGS:
        texts = [encode(masks_to_grid(sample.masks, 16, "nearest"), sample.labels, name)
                 for sample in refcoco]
        means[name] = np.mean([len(tokenizer.encode(t, add_special_tokens=False)) for t in texts])
    # The README rounds to one digit (150.1 is 150.05).
    assert means == pytest.approx({"full": 598.3, "irle": 99.5, "rrle": 150.1}, abs=0.051)
