"""The official files of the data sets in miniature: one function writes each below a root."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image
from scipy.io import savemat

H, W = 12, 16


def put_image(path, values, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values).astype(np.uint8))
    if palette:
        image.putpalette(palette)
    image.save(path)


def photo(path, size=(H, W)):
    put_image(path, np.full((*size, 3), 90, np.uint8))


def halves(left, right):
    """A map of two values, side by side."""
    values = np.full((H, W), left)
    values[:, W // 2:] = right
    return values


def cocostuff(root, values, split="val2017", stem="000000000139", ending=".png"):
    photo(root / "images" / split / f"{stem}.jpg")
    put_image(root / "annotations" / split / f"{stem}{ending}", values)


def ade(root, values, stem="ADE_val_00000001", split="validation"):
    photo(root / "images" / split / f"{stem}.jpg")
    put_image(root / "annotations" / split / f"{stem}.png", values)


def listed(root, kind, stem):
    photo(root / "JPEGImages" / f"{stem}.jpg")
    path = root / "ImageSets" / kind / "val.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{stem}\n")


def voc(root, values, stem="2007_000033"):
    listed(root, "Segmentation", stem)
    put_image(root / "SegmentationClass" / f"{stem}.png", values, [n % 256 for n in range(768)])


def context(root, values, folder, stem="2008_000002"):
    listed(root, "SegmentationContext", stem)
    if folder == "trainval":
        (root / folder).mkdir()
        savemat(root / folder / f"{stem}.mat", {"LabelMap": np.asarray(values, np.uint16)})
    else:
        put_image(root / folder / f"{stem}.png", values)


def put_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def ten(*answers):
    return [{"answer": a, "answer_confidence": "yes", "answer_id": n}
            for n, a in enumerate(answers, 1)]


def vqav2(root):
    put_json(root / "v2_OpenEnded_mscoco_val2014_questions.json", {
        "info": {}, "task_type": "Open-Ended", "questions": [
            {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
            {"image_id": 262148, "question": "How many?", "question_id": 262148001}]})
    put_json(root / "v2_mscoco_val2014_annotations.json", {"annotations": [
        {"question_type": "how many", "multiple_choice_answer": "2", "answer_type": "number",
         "image_id": 262148, "question_id": 262148001, "answers": ten(*["2"] * 7, *["3"] * 3)},
        {"question_type": "where", "multiple_choice_answer": "down", "answer_type": "other",
         "image_id": 262148, "question_id": 262148000, "answers": ten(*["down"] * 10)}]})
    put_json(root / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": [
        {"image_id": 1, "question": "What is it?", "question_id": 1000}]})
    photo(root / "val2014" / "COCO_val2014_000000262148.jpg")
    photo(root / "test2015" / "COCO_test2015_000000000001.jpg")


def gqa(root):
    put_json(root / "questions1.2" / "testdev_balanced_questions.json", {
        "201307251": {"question": "Is it overcast?", "imageId": "n161313", "answer": "no",
                      "isBalanced": True, "fullAnswer": "No, it is clear."},
        "201640614": {"question": "Wer ist im Caf\u00e9?", "imageId": "n235859", "answer": "lady"}})
    for name in ("n161313", "n235859"):
        photo(root / "images" / f"{name}.jpg")


def vizwiz(root):
    put_json(root / "Annotations" / "val.json", [
        {"image": "VizWiz_val_00000000.jpg", "question": "Ok. There is another picture?",
         "answers": ten(*["unanswerable"] * 6, *["no"] * 4), "answer_type": "unanswerable",
         "answerable": 0}])
    photo(root / "val" / "VizWiz_val_00000000.jpg")


def scienceqa(root):
    row = {"question": "Which is farthest north?", "choices": ["Ohio", "Maine"], "answer": 1,
           "hint": "Look at the map.", "image": "image.png", "subject": "social science",
           "split": "test"}
    put_json(root / "problems.json", {"4": row, "5": {**row, "image": None, "hint": ""},
                                 "6": {**row, "hint": ""}})
    put_json(root / "pid_splits.json", {"train": [], "test": ["4", "5", "6"]})
    for number in "46":
        photo(root / "images" / "test" / number / "image.png")


def textvqa(root):
    put_json(root / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [
        {"question": "what is the brand?", "image_id": "003a8ae2ef43b901", "question_id": 34602,
         "image_width": 1024, "image_height": 664, "set_name": "val",
         "answers": ["nous"] * 6 + ["dakota"] * 4}]})
    photo(root / "train_images" / "003a8ae2ef43b901.jpg")


def pope(root):
    rows = [{"question_id": n, "image": "COCO_val2014_000000310196.jpg",
             "text": f"Is there a {thing} in the image?", "label": label}
            for n, thing, label in ((1, "snowboard", "yes"), (2, "backpack", "no"))]
    put_json(root / "coco_pope_random.json", "".join(json.dumps(row) + "\n" for row in rows))
    photo(root / "val2014" / "COCO_val2014_000000310196.jpg")


def llava(root):
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A bus."},
            {"from": "human", "value": "Its colour?"}, {"from": "gpt", "value": "Red."}]
    put_json(root / "llava_v1_5_mix665k.json", [
        {"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "conversations": said},
        {"id": "wgByO4Y_0", "model": "", "conversations": said[2:]},
        {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
         "conversations": said[:2]}])
    photo(root / "coco" / "train2017" / "000000033471.jpg")


MAKERS = {"vqav2": vqav2, "gqa": gqa, "vizwiz": vizwiz, "scienceqa": scienceqa, "textvqa": textvqa,
          "pope-random": pope, "llava-665k": llava}
