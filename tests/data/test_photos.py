"""The bundled photos: our outlines are valid, lie on edges, and belong to the photos at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from scipy import ndimage
from skimage.color import rgb2lab

from t4s_helpers.data import SampleError
from t4s_helpers.data import photos
from t4s_helpers.data.coco import draw_outline, read_annotations
from t4s_helpers.data.photos import load_photos, photo_samples

OUTLINES = Path(photos.__file__).with_name("photos.json")
FILE = json.loads(OUTLINES.read_text(encoding="utf-8"))
EXPRESSIONS = FILE["expressions"]


@cache
def by_expression():
    return photo_samples()


@cache
def by_photo():
    return load_photos()


# how much there is


def test_enough_photos_and_targets():
    kinds = [min(len(e["annotation_ids"]), 2) for e in EXPRESSIONS]
    assert kinds.count(1) >= 18 and kinds.count(2) >= 6 and kinds.count(0) >= 8
    assert len(FILE["images"]) >= 8
    for image in FILE["images"]:
        mine = {kind for kind, e in zip(kinds, EXPRESSIONS) if e["image_id"] == image["id"]}
        assert mine == {0, 1, 2}, image["name"]
        assert sum(a["image_id"] == image["id"] for a in FILE["annotations"]) >= 2, image["name"]


def test_one_sample_per_expression():
    samples = by_expression()
    assert [s.labels[0] for s in samples] == [e["text"] for e in EXPRESSIONS]
    assert len({s.id for s in samples}) == len(samples)
    for sample, expression in zip(samples, EXPRESSIONS, strict=True):
        n_targets = len(expression["annotation_ids"])
        assert sample.task == ("res" if n_targets == 1 else "gres")
        assert sample.has_target.tolist() == [n_targets > 0]
        assert len(sample.instances()[0]) == len(sample.meta["categories"]) == n_targets
        assert sample.pixels().shape == (*sample.size, 3) and sample.split == "test"


def test_one_sample_per_photo():
    samples = by_photo()
    assert [s.meta["photo"] for s in samples] == [image["name"] for image in FILE["images"]]
    for sample in samples:
        assert len(sample.labels) >= 2 and sample.has_target.all() and sample.task == "gres"
        overlap = (sample.masks.sum(axis=0) > 1).sum()
        assert overlap <= 0.001 * sample.masks.sum(), "labels of a photo do not overlap"


def test_every_target_is_visible_on_the_default_grid():
    for sample in (*by_photo(), *by_expression()):
        grid = sample.grid(16)
        objects, owners = sample.instances()
        assert set(np.unique(grid)) - {0} == {owner + 1 for owner in owners}
        assert (grid > 0).sum() >= len(objects), sample.id


def test_a_multi_target_expression_is_the_union_of_its_targets():
    (row,) = [s for s in by_expression() if s.labels == ("the coins in the top row",)]
    objects, _ = row.instances()
    assert len(objects) == ndimage.label(row.masks[0])[1] == 6
    assert np.array_equal(objects.any(axis=0), row.masks[0])
    assert np.nonzero(row.masks[0])[0].max() < row.size[0] / 3


# the file


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_other_readers_of_coco_see_the_same():
    reference = COCO(OUTLINES)
    for annotation in reference.anns.values():
        image = reference.imgs[annotation["image_id"]]
        mask = draw_outline(annotation["segmentation"], (image["height"], image["width"]))
        assert np.array_equal(mask, reference.annToMask(annotation).astype(bool))
        rows, cols = np.nonzero(mask)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == [
            cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1
        ]


def test_the_file_refers_to_itself_only():
    coco = read_annotations(OUTLINES)
    for annotation in coco.annotations.values():
        coco.check(annotation)
    used = set()
    for expression in EXPRESSIONS:
        owned = {coco.annotations[i]["image_id"] for i in expression["annotation_ids"]}
        assert owned <= {expression["image_id"]}
        text = expression["text"]
        assert text == text.strip() and text.isprintable() and len(text.split()) >= 2
        used.update(expression["annotation_ids"])
    assert used == set(coco.annotations), "every outline is part of an expression"
    assert set(coco.categories) == {a["category_id"] for a in coco.annotations.values()}
    assert len({(e["image_id"], e["text"]) for e in EXPRESSIONS}) == len(EXPRESSIONS)


def test_photos_are_not_part_of_the_project():
    kept = {path.suffix for path in OUTLINES.parent.iterdir() if path.is_file()}
    assert not kept & {".png", ".jpg", ".jpeg", ".npy", ".tif"}


# how well the outlines fit


def colour_steps(pixels):
    """How fast the colour changes at each pixel; nothing is known at the frame of the photo."""
    lab = rgb2lab(pixels)
    steps = [ndimage.gaussian_gradient_magnitude(lab[..., c], 1.0) for c in range(3)]
    strength = np.linalg.norm(steps, axis=0)
    strength[:3] = strength[-3:] = strength[:, :3] = strength[:, -3:] = np.nan
    return strength


def on_and_beside(strength, annotation):
    """Median step on an outline, and on the outline grown and shrunk by 5 pixels."""
    x, y, width, height = annotation["bbox"]
    crop = np.s_[max(y - 9, 0) : y + height + 9, max(x - 9, 0) : x + width + 9]
    mask = draw_outline(annotation["segmentation"], strength.shape)[crop]
    distance = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
    rings = [strength[crop][np.abs(distance - shift) <= 1.5] for shift in (0, 5, -5)]
    return [np.nanmedian(ring) if np.isfinite(ring).any() else 0.0 for ring in rings]


@pytest.mark.parametrize("image", FILE["images"], ids=lambda image: image["name"])
def test_outlines_lie_on_edges_of_the_photo(image):
    """The colour changes more across an outline than across the same outline moved."""
    (sample,) = [s for s in by_photo() if s.meta["photo"] == image["name"]]
    strength = colour_steps(sample.pixels())
    mine = [a for a in FILE["annotations"] if a["image_id"] == image["id"]]
    results = [on_and_beside(strength, annotation) for annotation in mine]
    fitting = [on > 1.15 * outside and on > inside for on, outside, inside in results]
    assert np.mean(fitting) >= 0.8, list(zip([a["id"] for a in mine], results, strict=True))


def test_gaps_inside_a_target_stay_open():
    (tripod,) = [s for s in by_expression() if s.labels == ("the tripod",)]
    mask = tripod.masks[0]
    assert mask[430, 294] and mask[430, 362], "column and right leg"
    assert not mask[430, 330] and not mask[440, 275], "lawn between the legs"


# other photos than ours


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of scikit-image's folder with the files that we use."""
    real = photos.bundled_folder()
    for image in FILE["images"]:
        (tmp_path / image["file_name"]).write_bytes((real / image["file_name"]).read_bytes())
    monkeypatch.setattr(photos, "bundled_folder", lambda: tmp_path)
    return tmp_path


def test_names_a_photo_that_is_missing_or_another(folder):
    (folder / "coffee.png").unlink()
    with pytest.raises(SampleError, match=r"'coffee', .*coffee\.png, is missing; install"):
        photo_samples()
    with open(folder / "astronaut.png", "ab") as file:
        file.write(b"\0")
    with pytest.raises(SampleError, match=r"'astronaut', .*\.png, is not the one .*SHA-256"):
        load_photos()


def test_says_when_scikit_image_is_not_there(monkeypatch):
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SampleError, match="scikit-image, which is not installed"):
        load_photos()


def test_needs_no_network_and_no_scikit_image_code():
    program = (
        "import socket, sys\n"
        "def no(*a, **k): raise RuntimeError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = no\n"
        "from t4s_helpers.data.photos import load_photos\n"
        "load_photos()\n"
        "print(sorted({'skimage', 'pooch', 'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
