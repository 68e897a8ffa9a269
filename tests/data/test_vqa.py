"""Readers of visual questions on miniatures of the official files."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from t4s_helpers.data import SampleError, load
from t4s_helpers.data.conversations import Conversation
from t4s_helpers.data.vqa import SHORT
from t4s_helpers.evaluation.metrics import VQAAccuracy

H, W = 12, 16


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (W, H), "olive").save(path)


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def ten(*answers):
    return [{"answer": a, "answer_confidence": "yes", "answer_id": n}
            for n, a in enumerate(answers, 1)]


def vqav2(root):
    put(root / "v2_OpenEnded_mscoco_val2014_questions.json", {
        "info": {}, "task_type": "Open-Ended", "questions": [
            {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
            {"image_id": 262148, "question": "How many?", "question_id": 262148001}]})
    put(root / "v2_mscoco_val2014_annotations.json", {"annotations": [
        {"question_type": "how many", "multiple_choice_answer": "2", "answer_type": "number",
         "image_id": 262148, "question_id": 262148001, "answers": ten(*["2"] * 7, *["3"] * 3)},
        {"question_type": "where", "multiple_choice_answer": "down", "answer_type": "other",
         "image_id": 262148, "question_id": 262148000, "answers": ten(*["down"] * 10)}]})
    put(root / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": [
        {"image_id": 1, "question": "What is it?", "question_id": 1000}]})
    photo(root / "val2014" / "COCO_val2014_000000262148.jpg")
    photo(root / "test2015" / "COCO_test2015_000000000001.jpg")


def gqa(root):
    put(root / "questions1.2" / "testdev_balanced_questions.json", {
        "201307251": {"question": "Is it overcast?", "imageId": "n161313", "answer": "no",
                      "isBalanced": True, "fullAnswer": "No, it is clear."},
        "201640614": {"question": "Wer ist im Caf\u00e9?", "imageId": "n235859", "answer": "lady"}})
    for name in ("n161313", "n235859"):
        photo(root / "images" / f"{name}.jpg")


def vizwiz(root):
    put(root / "Annotations" / "val.json", [
        {"image": "VizWiz_val_00000000.jpg", "question": "Ok. There is another picture?",
         "answers": ten(*["unanswerable"] * 6, *["no"] * 4), "answer_type": "unanswerable",
         "answerable": 0}])
    photo(root / "val" / "VizWiz_val_00000000.jpg")


def scienceqa(root):
    row = {"question": "Which is farthest north?", "choices": ["Ohio", "Maine"], "answer": 1,
           "hint": "Look at the map.", "image": "image.png", "subject": "social science",
           "split": "test"}
    put(root / "problems.json", {"4": row, "5": {**row, "image": None, "hint": ""},
                                 "6": {**row, "hint": ""}})
    put(root / "pid_splits.json", {"train": [], "test": ["4", "5", "6"]})
    for number in "46":
        photo(root / "images" / "test" / number / "image.png")


def textvqa(root):
    put(root / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [
        {"question": "what is the brand?", "image_id": "003a8ae2ef43b901", "question_id": 34602,
         "image_width": 1024, "image_height": 664, "set_name": "val",
         "answers": ["nous"] * 6 + ["dakota"] * 4}]})
    photo(root / "train_images" / "003a8ae2ef43b901.jpg")


def pope(root):
    rows = [{"question_id": n, "image": "COCO_val2014_000000310196.jpg",
             "text": f"Is there a {thing} in the image?", "label": label}
            for n, thing, label in ((1, "snowboard", "yes"), (2, "backpack", "no"))]
    put(root / "coco_pope_random.json", "".join(json.dumps(row) + "\n" for row in rows))
    photo(root / "val2014" / "COCO_val2014_000000310196.jpg")


def llava(root):
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A bus."},
            {"from": "human", "value": "Its colour?"}, {"from": "gpt", "value": "Red."}]
    put(root / "llava_v1_5_mix665k.json", [
        {"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "conversations": said},
        {"id": "wgByO4Y_0", "model": "", "conversations": said[2:]},
        {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
         "conversations": said[:2]}])
    photo(root / "coco" / "train2017" / "000000033471.jpg")


MAKERS = {"vqav2": vqav2, "gqa": gqa, "vizwiz": vizwiz, "scienceqa": scienceqa, "textvqa": textvqa,
          "pope-random": pope, "llava-665k": llava}


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


@pytest.mark.parametrize("name", EXPECTED)
def test_the_answer_scores(files, name):
    """As the metric wants it: the most common answer is right under the data set's rule."""
    sample = files(name)[0]
    rule = {"yes-no": "exact"}.get(sample.meta["rule"], sample.meta["rule"])
    assert VQAAccuracy(rule).update(sample.answer, sample.meta["answers"]) == 1


def test_answers_go_with_their_questions(files):
    data = files("vqav2")
    assert [s.answer for s in data] == ["down", "2"]
    assert data[1].meta["answers"].count("3") == 3


def test_instructions_are_arguments(files):
    assert files("gqa")[0].question == f"Is it overcast?\n{SHORT}"
    assert files("gqa", instruction="")[0].question == "Is it overcast?"
    assert "map" not in files("scienceqa", hint=False)[0].question


def test_texts_beyond_ascii(files):
    assert files("gqa", instruction="")[1].question == "Wer ist im Caf\u00e9?"


def test_secret_answers_are_none(files):
    sample = files("vqav2", split="test2015")[0]
    assert sample.answer is None and sample.meta["answers"] == ()


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


@pytest.mark.parametrize("name", MAKERS)
def test_data_sets_travel_to_other_processes(files, name):
    import pickle

    data = files(name)
    data[0]
    again = pickle.loads(pickle.dumps(data))
    assert again[0].id == data[0].id and len(again) == len(data)


# bad input


def rewritten(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_missing_photo_is_refused_or_listed(files):
    files("gqa")
    (files.root / "images" / "n235859.jpg").unlink()
    with pytest.raises(SampleError, match=r"n235859\.jpg of gqa/testdev/201640614 does not exist"):
        load("gqa", root=files.root, counts="off")
    data = load("gqa", root=files.root, counts="off", bad="exclude")
    assert len(data) == 1 and data.excluded[0].id == "gqa/testdev/201640614"


def test_a_broken_photo_is_refused_where_it_is_verified(files):
    files("gqa")
    (files.root / "images" / "n235859.jpg").write_bytes(b"no picture")
    with pytest.raises(SampleError, match=r"n235859\.jpg cannot be read"):
        load("gqa", root=files.root, counts="off")
    assert len(load("gqa", root=files.root, counts="off", verify=False)) == 2


def test_a_question_asked_twice(files):
    files("vqav2")
    path = files.root / "v2_OpenEnded_mscoco_val2014_questions.json"
    rewritten(path, lambda v: v["questions"].append(v["questions"][0]))
    with pytest.raises(SampleError, match="262148000 occurs twice"):
        load("vqav2", root=files.root, counts="off")
    data = load("vqav2", root=files.root, counts="off", bad="exclude")
    assert len(data) == 2 and data.excluded[0].reason == "duplicated id"


def test_a_question_without_its_answer(files):
    files("vqav2")
    path = files.root / "v2_mscoco_val2014_annotations.json"
    rewritten(path, lambda v: v["annotations"].pop())
    with pytest.raises(SampleError, match="262148000 .* has no annotation"):
        load("vqav2", root=files.root, counts="off")


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
        ("textvqa", "TextVQA_0.5.1_val.json", lambda v: v.update(data=[1]), "list 'data'"),
    ],
)
def test_names_the_row(files, name, path, change, words):
    files(name)
    rewritten(files.root / path, change)
    with pytest.raises(SampleError, match=words):
        load(name, root=files.root, counts="off")


def test_a_half_written_line_is_named(files):
    files("pope-random")
    path = files.root / "coco_pope_random.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(SampleError, match=r"Line 2 of .*coco_pope_random\.json"):
        load("pope-random", root=files.root, counts="off")


def test_a_label_that_is_neither_yes_nor_no(files):
    files("pope-random")
    path = files.root / "coco_pope_random.json"
    path.write_text(path.read_text().replace('"no"', '"maybe"'))
    with pytest.raises(SampleError, match="'maybe', neither yes nor no"):
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
def test_counts(files, name):
    with pytest.raises(SampleError, match="instead of the .* that are published"):
        files(name, counts="strict")
    with pytest.warns(UserWarning, match="instead of the"):
        files(name, counts="warn")
