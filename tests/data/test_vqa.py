"""Readers of visual questions on miniatures of the official files."""

from __future__ import annotations

import json
import pickle

import pytest
from miniatures import MAKERS, H, W

from t4s_helpers.data import SampleError, load
from t4s_helpers.data.mixtures import Conversation
from t4s_helpers.data.vqa import SHORT
from t4s_helpers.evaluation.metrics import VQAAccuracy


@pytest.fixture
def files(tmp_path):
    def make(name, **options):
        MAKERS[name](tmp_path)
        return load(name, root=tmp_path, **{"counts": "off", **options})

    make.root = tmp_path
    return make


# what good files become

EXPECTED = {
    # number of samples, first id, first question, answer, rule, number of true answers
    "vqav2": (2, "vqav2/val2014/262148000", "Where is he looking?", "down", "vqav2", 10),
    "gqa": (2, "gqa/testdev/201307251", "Is it overcast?", "no", "exact", 1),
    "vizwiz": (1, "vizwiz/val/VizWiz_val_00000000", "Ok. There is another picture?", "unanswerable",
               "vqav2", 10),
    "scienceqa": (2, "scienceqa/test/4",
                  "Look at the map.\nWhich is farthest north?\nA. Ohio\nB. Maine", "B", "exact", 1),
    "textvqa": (1, "textvqa/val/34602", "what is the brand?", "nous", "vqav2", 10),
    "pope-random": (2, "pope-random/test/1", "Is there a snowboard in the image?", "yes", "yes-no", 1),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_first_sample(files, name):
    n, identity, question, answer, rule, n_answers = EXPECTED[name]
    data = files(name)
    sample = data[0]
    assert len(data) == n and data.task == sample.task == "vqa"
    assert data.id(0) == sample.id == identity
    assert sample.question.startswith(question + "\n")
    assert len(sample.question.splitlines()) == len(question.splitlines()) + 1
    assert sample.answer == answer and sample.meta["rule"] == rule
    assert len(sample.meta["answers"]) == n_answers
    assert sample.labels == () and sample.masks.shape == (0, H, W)
    assert sample.pixels().shape == (H, W, 3) and data.image(0) == sample.image
    metric = VQAAccuracy({"yes-no": "exact"}.get(rule, rule))
    assert metric.update(sample.answer, sample.meta["answers"]) == 1


def test_answers_go_with_their_questions(files):
    data = files("vqav2")
    assert [s.answer for s in data] == ["down", "2"]
    assert data[1].meta["answers"].count("3") == 3
    secret = files("vqav2", split="test2015")[0]
    assert secret.answer is None and secret.meta["answers"] == ()


def test_instructions_are_arguments(files):
    assert files("gqa")[0].question == f"Is it overcast?\n{SHORT}"
    assert files("gqa", instruction="")[1].question == "Wer ist im Caf\u00e9?"
    assert "map" not in files("scienceqa", hint=False)[0].question


def test_conversations_of_llava(files):
    data = files("llava-665k")
    first, second, third = data
    assert isinstance(first, Conversation) and data.task == "conversation"
    assert first.turns == (("What is it?", "A bus."), ("Its colour?", "Red."))
    assert first.pixels().shape == (H, W, 3)
    assert second.image is None and second.pixels() is None and data.image(1) is None
    assert len({first.id, second.id, third.id}) == 3, "although the file's own ids repeat"


def test_questions_without_a_picture_are_listed(files):
    data = files("scienceqa")
    assert [s.id for s in data] == ["scienceqa/test/4", "scienceqa/test/6"]
    assert data.exclusions() == [
        {"reason": "question without a picture", "n": 1, "first": "scienceqa/test/5"}]


# bad input


def rewritten(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_missing_or_broken_photo_is_refused_or_listed(files):
    files("gqa")
    path = files.root / "images" / "n235859.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(SampleError, match=r"n235859\.jpg cannot be read"):
        load("gqa", root=files.root, counts="off")
    assert len(load("gqa", root=files.root, counts="off", verify=False)) == 2
    path.unlink()
    with pytest.raises(SampleError, match=r"n235859\.jpg of gqa/testdev/201640614 does not exist"):
        load("gqa", root=files.root, counts="off")
    data = load("gqa", root=files.root, counts="off", bad="exclude")
    assert len(data) == 1 and data.excluded[0].id == "gqa/testdev/201640614"


@pytest.mark.parametrize(
    ("name", "path", "change", "words"),
    [
        ("scienceqa", "problems.json", lambda v: v["4"].update(answer=2), "answer 2 to 2 choices"),
        ("scienceqa", "problems.json", lambda v: v.pop("6"), "'6' of ScienceQA is listed"),
        ("gqa", "questions1.2/testdev_balanced_questions.json",
         lambda v: v["201307251"].pop("imageId"), "lacks imageId"),
        ("llava-665k", "llava_v1_5_mix665k.json", lambda v: v[0]["conversations"].pop(),
         "Row 0 .* no pairs"),
        ("llava-665k", "llava_v1_5_mix665k.json",
         lambda v: v[1]["conversations"][0].update({"from": "gpt"}), "Row 1 .* in turn"),
        ("textvqa", "TextVQA_0.5.1_val.json", lambda v: v.update(data=[1]), "list of objects 'data'"),
        ("vqav2", "v2_OpenEnded_mscoco_val2014_questions.json",
         lambda v: v["questions"].append(v["questions"][0]), "262148000 occurs twice"),
        ("vqav2", "v2_mscoco_val2014_annotations.json", lambda v: v["annotations"].pop(),
         "262148000 .* has no annotation"),
    ],
)
def test_names_the_row(files, name, path, change, words):
    files(name)
    rewritten(files.root / path, change)
    with pytest.raises(SampleError, match=words):
        load(name, root=files.root, counts="off")


@pytest.mark.parametrize(("change", "words"), [
    (lambda text: text[:-20], r"coco_pope_random\.json cannot be read as JSON \(line 2: "),
    (lambda text: text.replace('"no"', '"maybe"'), "'maybe', neither yes nor no"),
])
def test_names_the_line(files, change, words):
    files("pope-random")
    path = files.root / "coco_pope_random.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(SampleError, match=words):
        load("pope-random", root=files.root, counts="off")


FILES = {
    "vqav2": ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
    "gqa": ("questions1.2/testdev_balanced_questions.json",),
    "vizwiz": ("Annotations/val.json",),
    "scienceqa": ("problems.json", "pid_splits.json"),
    "textvqa": ("TextVQA_0.5.1_val.json",),
    "pope-random": ("coco_pope_random.json",),
    "llava-665k": ("llava_v1_5_mix665k.json",),
}


@pytest.mark.parametrize(("name", "file"), [(n, f) for n, fs in FILES.items() for f in fs])
def test_names_a_missing_and_a_broken_file(files, name, file):
    files(name)
    path = files.root / file
    path.write_text(path.read_text()[:-30])
    with pytest.raises(SampleError, match=path.name.replace(".", r"\.")):
        load(name, root=files.root, counts="off")
    path.unlink()
    with pytest.raises(SampleError, match=f"{path.name}.* does not exist"):
        load(name, root=files.root, counts="off")


@pytest.mark.parametrize("name", MAKERS)
def test_counts_are_checked_and_data_sets_travel_to_other_processes(files, name):
    with pytest.raises(SampleError, match="instead of the .* that are published"):
        files(name, counts="strict")
    with pytest.warns(UserWarning, match="instead of the"):
        data = files(name, counts="warn")
    again = pickle.loads(pickle.dumps(data))
    assert again[0].id == data[0].id and len(again) == len(data)
