"""Rows of JSON files that stay on disk."""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t4s_helpers.data import SampleError
from t4s_helpers.data import rows
from t4s_helpers.data.rows import Rows, Table, read_lines, read_rows

values = st.recursive(
    st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
objects = st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=6)


def put(folder, text):
    path = folder / "file.json"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("piece", [1, 7, 1 << 22])
def test_reads_what_json_reads(tmp_path_factory, piece):
    """Whatever the file holds, how it is spaced and where its pieces end."""
    folder = tmp_path_factory.mktemp("rows")

    @given(objects, values, st.booleans(), st.sampled_from([None, 1]))
    def check(found, other, ascii_only, indent):
        data = {"rows": found, "\u00e4 key": other, "empty": [], "plain": [1, [2], "\u00e9"]}
        path = put(folder, json.dumps(data, ensure_ascii=ascii_only, indent=indent))
        read = read_rows(path)
        assert list(read) == list(data)
        assert list(read["rows"]) == found and list(read["empty"]) == []
        assert read["plain"] == data["plain"]
        if not isinstance(other, list) or not all(isinstance(v, dict) for v in other):
            assert read["\u00e4 key"] == other
        keyed = {f"{n} \u00fc": row for n, row in enumerate(found)}
        path = put(folder, json.dumps(keyed, ensure_ascii=ascii_only, indent=indent))
        assert list(read_rows(path, keyed=True)[""]) == list(keyed.items())
        path = put(folder, json.dumps(found, ensure_ascii=ascii_only, indent=indent))
        assert list(read_rows(path)[""]) == found

    before, rows._PIECE = rows._PIECE, piece
    try:
        check()
    finally:
        rows._PIECE = before


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"a"', '{"a": [', '{"a": [{}', '{"a": [{"b": 1}, ', '{"a": [1 2]}', '{"a": 1} 2',
     '{"a": nul}', '{"a": "x', "{a: 1}", '{"a": 1,}', '{"a": [{},]}', '{"a": [{}]]', '{"a" 1}'],
)
@pytest.mark.parametrize("piece", [1, 1 << 22])
def test_names_a_broken_file(tmp_path, monkeypatch, text, piece):
    monkeypatch.setattr(rows, "_PIECE", piece)
    with pytest.raises(SampleError, match=r"file\.json cannot be read as JSON"):
        read_rows(put(tmp_path, text))


def test_a_fault_at_the_beginning_does_not_read_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_PIECE", 1 << 10)
    path = put(tmp_path, '{"a": [{"b": oops}, ' + "{}, " * 100_000)
    read = []
    monkeypatch.setattr(rows._Reader, "more", lambda self, more=rows._Reader.more: (
        read.append(1), more(self)))
    with pytest.raises(SampleError, match="byte 13"):
        read_rows(path)
    assert len(read) == 1


def test_columns_and_the_table_of_ids(tmp_path):
    found = [{"id": 7, "n": 1}, {"id": 3, "n": None}, {"id": 5, "n": "x"}]
    read = read_rows(put(tmp_path, json.dumps({"a": found})), {"a": ("id", "n")})["a"]
    assert read.columns["id"].tolist() == [7, 3, 5] and read.columns["n"] == [1, None, "x"]
    table = Table(read)
    assert list(table) == [7, 3, 5] and table[3] == found[1] and len(table) == 3
    assert 5 in table and 4 not in table and "5" not in table and [5] not in [*table]
    assert list(table.items()) == [(row["id"], row) for row in found]
    with pytest.raises(KeyError):
        table[9]


def test_ids_may_be_texts(tmp_path):
    found = [{"id": "b"}, {"id": "a"}, {"id": 4}]
    table = Table(read_rows(put(tmp_path, json.dumps({"a": found})), {"a": ("id",)})["a"])
    assert [table["b"], table["a"], table[4]] == found and "c" not in table


def test_packed_rows_are_those_given():
    found = [{"a": "\u00e9\ud83d\ude00"}, [1, 2.5], "text", None, {"half": "\ud800"}]
    packed = Rows.packed(found)
    assert list(packed) == found and packed[-1] == found[-1]


def test_lines(tmp_path):
    path = put(tmp_path, '{"a": 1}\n\n{"a": "\u00e9"}')
    assert list(read_lines(path)) == [{"a": 1}, {"a": "\u00e9"}]
    for text, line in (('{"a": 1}\n{"a"', 2), ("3\n", 1)):
        with pytest.raises(SampleError, match=rf"Line {line} of .*file\.json"):
            read_lines(put(tmp_path, text))


def read_in_child(rows, queue):
    queue.put([row["n"] for row in rows])


def test_a_forked_process_reads_for_itself(tmp_path):
    data = read_rows(put(tmp_path, json.dumps([{"n": n} for n in range(500)])))[""]
    assert data[0] == {"n": 0}
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=read_in_child, args=(data, queue)) for _ in range(2)]
    for child in children:
        child.start()
    for _ in children:
        assert queue.get(timeout=60) == list(range(500))
    for child in children:
        child.join(60)


def test_only_offsets_stay_in_memory(tmp_path):
    data = read_rows(put(tmp_path, json.dumps([{"n": "x" * 1000} for n in range(100)])))[""]
    assert data.starts.dtype == np.int64 and data.sizes.dtype == np.int32
    assert data.starts.nbytes + data.sizes.nbytes == 12 * 100
