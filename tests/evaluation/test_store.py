"""A run's rows on disk: kills at any byte, other settings, damaged and doubled files."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from t4s_helpers.evaluation.store import (
    RUN_FILE, RunStore, StoreError, Processes, fingerprint, read_lines, read_run,
)

SETTINGS = {"size": 16, "mode": "fast", "samples": "abc"}
BATCHES = [["a", "b"], ["d", "c"], ["e"]]
ORDER = ["a", "b", "c", "d", "e"]


def opened(folder, settings=SETTINGS, **options):
    return RunStore(folder, settings, BATCHES, order=ORDER, **options)


def rows(batch: int, seconds: float = 1.0):
    return [{"id": name, "text": f"answer {name}", "seconds": seconds} for name in BATCHES[batch]]


def written(folder, batches):
    store = opened(folder)
    for k in batches:
        store.write(k, rows(k))
    store.close()
    return folder / "rows.00000.jsonl"


def finished(folder, seconds: float = 2.0):
    store = opened(folder)
    for k in store.todo():
        store.write(k, rows(k, seconds))
    return store.finish()


def test_rows_come_back_in_the_order_of_the_samples(tmp_path):
    made = finished(tmp_path)
    assert [row["id"] for row in made] == ORDER
    assert [path.name for path in tmp_path.glob("rows*")] == ["rows.jsonl"]
    assert read_run(tmp_path)[0] == made
    assert opened(tmp_path).todo() == []


def test_a_kill_at_any_byte_loses_and_doubles_nothing(tmp_path):
    whole = written(tmp_path / "whole", [0, 1]).read_bytes()
    first = len(whole.split(b"\n")[0]) + len(whole.split(b"\n")[1]) + 2
    for cut in range(0, len(whole), 7):
        folder = tmp_path / str(cut)
        written(folder, [0, 1]).write_bytes(whole[:cut])
        store = opened(folder)
        assert store.todo() == ([0, 1, 2] if cut < first else [1, 2])
        store.close()
        made = finished(folder)
        assert [row["id"] for row in made] == ORDER
        # what was whole before the kill was not made again
        assert [row["seconds"] for row in made[:2]] == ([2.0] * 2 if cut < first else [1.0] * 2)


def test_a_reader_of_an_unfinished_run_names_the_torn_line(tmp_path):
    path = written(tmp_path, [0, 1])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="rows.00000.jsonl is torn off"):
        found, record = read_run(tmp_path)
    assert [row["id"] for row in found] == ["a", "b", "d"]
    assert record["settings"] == SETTINGS


def test_other_settings_are_refused_and_named(tmp_path):
    path = written(tmp_path, [0])
    before = path.read_bytes()
    with pytest.raises(StoreError, match="size: 16 there, 24 here"):
        opened(tmp_path, {**SETTINGS, "size": 24})
    with pytest.raises(StoreError, match='mode: null there, "fast" here') as caught:
        RunStore(written(tmp_path / "b", []).parent, SETTINGS, BATCHES).close()
        RunStore(tmp_path / "c", {"size": 16, "samples": "abc"}, BATCHES).close()
        opened(tmp_path / "c")
    assert "restart" in str(caught.value) and path.read_bytes() == before


def test_restart_forgets(tmp_path):
    written(tmp_path, [0, 1])
    store = opened(tmp_path, {**SETTINGS, "size": 24}, restart=True)
    assert store.todo() == [0, 1, 2] and not list(tmp_path.glob("rows*"))
    store.close()


def test_a_changed_package_is_said_aloud(tmp_path):
    opened(tmp_path, about={"package": "old"}).close()
    with pytest.warns(UserWarning, match="package has changed"):
        opened(tmp_path, about={"package": "new"}).close()


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(StoreError, match="Another process is writing"):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_a_damaged_or_doubled_line_is_named(tmp_path):
    path = written(tmp_path, [0, 1])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{half\n" + "".join(lines[2:]))
    with pytest.raises(StoreError, match="Line 2 of .*rows.00000.jsonl is no row"):
        opened(tmp_path)
    path.write_text("".join([*lines, lines[0]]))
    with pytest.raises(StoreError, match="Lines 1 and 5 of .* sample 'a'"):
        read_lines(path)


def test_a_row_in_two_files_counts_once_and_only_if_they_agree(tmp_path):
    """As after a kill between joining the files and removing them."""
    made = finished(tmp_path)
    joined = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.00000.jsonl").write_bytes(joined.replace(b'"seconds": 2.0', b'"seconds": 3.0'))
    assert [row["id"] for row in read_run(tmp_path)[0]] == ORDER
    assert len(finished(tmp_path)) == len(made)
    (tmp_path / "rows.00001.jsonl").write_bytes(joined.replace(b"answer c", b"answer z"))
    with pytest.raises(StoreError, match="sample 'c' in two ways"):
        read_run(tmp_path)


def test_rows_of_another_run_are_refused(tmp_path):
    path = written(tmp_path, [0])
    path.write_text(path.read_text().replace(fingerprint(SETTINGS), "0" * 16))
    with pytest.raises(StoreError, match="under other settings"):
        opened(tmp_path)


def test_samples_that_are_not_of_the_run_are_refused(tmp_path):
    path = written(tmp_path, [0])
    path.write_text(path.read_text().replace('"id": "b"', '"id": "z"'))
    with pytest.raises(StoreError, match="'z', which is none"):
        opened(tmp_path)


def test_a_batch_must_have_its_rows(tmp_path):
    store = opened(tmp_path)
    with pytest.raises(StoreError, match="Batch 1 must have"):
        store.write(1, rows(0))
    with pytest.raises(StoreError, match="5 samples have no row"):
        store.finish()
    store.close()


def test_a_full_disk_keeps_what_is_there(tmp_path, monkeypatch):
    import errno

    store = opened(tmp_path)
    store.write(0, rows(0))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("t4s_helpers.evaluation.store.os.fsync", full)
    with pytest.raises(StoreError, match="disk is full"):
        store.write(1, rows(1))
    monkeypatch.undo()
    store.close()
    assert [row["id"] for row in finished(tmp_path)] == ORDER


def test_rows_without_a_record_are_not_guessed_at(tmp_path):
    written(tmp_path, [0])
    (tmp_path / RUN_FILE).unlink()
    with pytest.raises(StoreError, match="rows without run.json"):
        opened(tmp_path)
    with pytest.raises(StoreError, match="holds no run.json"):
        read_run(tmp_path)
    (tmp_path / RUN_FILE).write_text(json.dumps({"settings": {}})[:-3])
    with pytest.raises(StoreError, match="not the record"):
        read_run(tmp_path)


def machines(tmp_path, count: int = 2, batches=None):
    """A run shared by machines with a folder each; the rows that each of them ends with."""
    import threading

    from t4s_helpers.evaluation.store import Processes

    barrier, box, out = threading.Barrier(count, timeout=60), [[]] * count, [None] * count

    class Machine(Processes):
        rank = property(lambda self: self.number)
        count = property(lambda self: len(box))
        first_here = True

        def __init__(self, number):
            self.number = number

        def wait(self):
            barrier.wait()

        def gather(self, items):
            box[self.number] = list(items)
            barrier.wait()
            joined = [item for part in box for item in part]
            barrier.wait()
            return joined

    def work(number):
        store = RunStore(tmp_path / str(number), SETTINGS, BATCHES, order=ORDER,
                        processes=Machine(number))
        mine = [k for k in store.todo() if batches is None or k in batches]
        for k in mine:
            store.write(k, rows(k))
        if batches is None:
            out[number] = mine, store.finish()
        store.close()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def test_machines_without_a_common_folder_share_a_run(tmp_path):
    machines(tmp_path, batches=[1])  # stopped when one of them had made the second batch
    (first, a), (second, b) = machines(tmp_path)
    assert sorted(first + second) == [0, 2], "what is done on one machine is not made on the other"
    assert a == b and [row["id"] for row in a] == ORDER
    for number in "01":
        assert read_run(tmp_path / number)[0] == a


def test_processes_wait_for_all_and_then_part():
    said = []
    processes = Processes()
    processes.leave()  # alone: nobody to take leave of
    processes.state = SimpleNamespace(wait_for_everyone=lambda: said.append("wait"),
                                      destroy_process_group=lambda: said.append("part"))
    processes.leave()
    assert said == ["wait", "part"]
