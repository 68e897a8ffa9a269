"""A run's rows on disk: kills, other settings, damaged and doubled files, several machines."""

from __future__ import annotations

import errno
import threading
from contextlib import closing
from types import SimpleNamespace

import pytest

from t4s_helpers.evaluation.store import RUN_FILE, Processes, RunStore, StoreError, fingerprint, read_run
from t4s_helpers.files import FileError

SETTINGS = {"size": 16, "mode": "fast", "samples": "abc"}
BATCHES = [["a", "b"], ["d", "c"], ["e"]]
ORDER = ["a", "b", "c", "d", "e"]


def opened(folder, settings=SETTINGS, **options):
    return closing(RunStore(folder, settings, BATCHES, ORDER, **options))


def rows(batch: int, seconds: float = 1.0):
    return [{"id": name, "text": f"answer {name}", "seconds": seconds} for name in BATCHES[batch]]


def written(folder, *batches):
    """A run that was stopped after these batches; the file of the first one."""
    with opened(folder) as store:
        for k in batches:
            store.write(k, rows(k))
    return folder / f"rows.{batches[0]:06d}.jsonl"


def finished(folder, seconds: float = 2.0):
    with opened(folder) as store:
        for k in store.todo():
            store.write(k, rows(k, seconds))
        return store.finish()


def test_what_was_whole_before_a_kill_is_not_made_again(tmp_path):
    part = written(tmp_path, 1)
    half = tmp_path / ".rows.000000.jsonl.77.tmp"  # what a kill leaves of a batch
    half.write_bytes(part.read_bytes()[:-9])
    assert [row["id"] for row in read_run(tmp_path)[0]] == ["c", "d"], "unfinished, in the samples' order"
    made = finished(tmp_path)
    assert [(row["id"], row["seconds"]) for row in made] == list(zip(ORDER, (2.0, 2.0, 1.0, 1.0, 2.0)))
    joined = {"rows.jsonl", RUN_FILE}
    assert {path.name for path in tmp_path.iterdir()} == joined
    assert read_run(tmp_path) == (made, {"fingerprint": fingerprint(SETTINGS), "settings": SETTINGS})
    written(tmp_path / "again", 1).rename(part)  # a kill between joining the parts and removing them
    assert read_run(tmp_path)[0] == finished(tmp_path) == made
    assert {path.name for path in tmp_path.iterdir()} == {*joined, "again"}


def test_other_settings_are_refused_and_named_until_restart(tmp_path):
    before = written(tmp_path, 0).read_bytes()
    with pytest.raises(StoreError, match="size: 16 there, 24 here.*restart"):
        opened(tmp_path, {**SETTINGS, "size": 24})
    with pytest.raises(StoreError, match='mode: "fast" there, null here'):
        opened(tmp_path, {"size": 16, "samples": "abc"})
    assert (tmp_path / "rows.000000.jsonl").read_bytes() == before
    with opened(tmp_path, {**SETTINGS, "size": 24}, restart=True) as store:
        assert store.todo() == [0, 1, 2] and not list(tmp_path.glob("rows*"))


def test_a_changed_package_is_said_aloud(tmp_path):
    with opened(tmp_path, about={"package": "old"}):
        pass
    with pytest.warns(UserWarning, match="package has changed"), opened(tmp_path, about={"package": "new"}):
        pass


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    with opened(tmp_path), pytest.raises(StoreError, match="Another process is writing"):
        opened(tmp_path)
    with opened(tmp_path):
        pass


@pytest.mark.parametrize(("old", "new", "words"), [
    ('{"id": "b"', "{half", "Line 2 of .*rows.000000.jsonl is no row"),
    ('"id": "b"', '"id": "a"', "Line 2 of .* sample 'a', which has a row already"),
    ('"id": "b"', '"id": "d"', "Line 1 of .*rows.000001.jsonl .* sample 'd', which has a row already"),
    ('"id": "b"', '"id": "z"', "'z', which is none"),
    (fingerprint(SETTINGS), "0" * 16, "under other settings"),
])
def test_rows_that_are_not_of_the_run_are_named(tmp_path, old, new, words):
    path = written(tmp_path, 0, 1)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(StoreError, match=words):
        opened(tmp_path)


def test_a_batch_must_have_its_rows(tmp_path):
    with opened(tmp_path) as store:
        with pytest.raises(StoreError, match="Batch 1 must have"):
            store.write(1, rows(0))
        with pytest.raises(StoreError, match="5 samples have no row"):
            store.finish()


def test_a_full_disk_keeps_what_is_there(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(tmp_path) as store:
        store.write(0, rows(0))
        monkeypatch.setattr("t4s_helpers.files.os.fsync", full)
        with pytest.raises(FileError, match="disk is full"):
            store.write(1, rows(1))
        monkeypatch.undo()
    assert [row["seconds"] for row in finished(tmp_path)] == [1.0, 1.0, 2.0, 2.0, 2.0]


def test_rows_without_a_record_are_not_guessed_at(tmp_path):
    written(tmp_path, 0)
    (tmp_path / RUN_FILE).unlink()
    with pytest.raises(StoreError, match="rows without run.json"):
        opened(tmp_path)
    with pytest.raises(StoreError, match="holds no run.json"):
        read_run(tmp_path)
    (tmp_path / RUN_FILE).write_text('{"settings": {')
    with pytest.raises(StoreError, match="not the record"):
        read_run(tmp_path)


class Machines:
    """Machines with a folder each, as threads that meet where processes would."""

    def __init__(self, count: int):
        self.barrier, self.box = threading.Barrier(count, timeout=60), [[]] * count

    def gather(self, number, items):
        self.box[number] = items
        self.barrier.wait()
        joined = [item for part in self.box for item in part]
        self.barrier.wait()
        return joined

    def run(self, work):
        """``work(processes, number)`` on each."""
        threads = []
        for number in range(len(self.box)):
            processes = SimpleNamespace(rank=number, count=len(self.box), first_here=True,
                                        gather=lambda items, number=number: self.gather(number, items))
            threads.append(threading.Thread(target=work, args=(processes, number)))
            threads[-1].start()
        for thread in threads:
            thread.join()


def test_machines_without_a_common_folder_share_a_run(tmp_path):
    made, ends = [], {}

    def stopped(processes, number):
        with opened(tmp_path / str(number), processes=processes) as store:
            if 1 in store.todo():
                store.write(1, rows(1))

    def work(processes, number):
        with opened(tmp_path / str(number), processes=processes) as store:
            for k in store.todo():
                made.append(k)
                store.write(k, rows(k))
            ends[number] = store.finish()

    Machines(2).run(stopped)
    Machines(2).run(work)
    assert sorted(made) == [0, 2], "what is done on one machine is not made on the other"
    assert [row["id"] for row in ends[0]] == ORDER
    for number in range(2):
        assert read_run(tmp_path / str(number))[0] == ends[number] == ends[0]


def test_what_stops_one_machine_stops_all(tmp_path):
    said = []
    written(tmp_path / "1", 0)

    def work(processes, number):
        with pytest.raises(StoreError) as caught:
            opened(tmp_path / str(number), {**SETTINGS, "size": 24}, processes=processes)
        said.append(str(caught.value))

    Machines(2).run(work)
    assert len(said) == 2 and said[0] == said[1] and "size: 16 there" in said[0]
    with opened(tmp_path / "0", {**SETTINGS, "size": 24}):
        pass  # and all let go of their folders


def test_processes_wait_for_all_and_then_part():
    said = []
    processes = Processes()
    processes.leave()  # alone: nobody to take leave of
    processes.state = SimpleNamespace(wait_for_everyone=lambda: said.append("wait"),
                                      destroy_process_group=lambda: said.append("part"))
    processes.leave()
    assert said == ["wait", "part"]
