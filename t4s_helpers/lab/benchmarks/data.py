"""How fast and how small reading data is: ``python -m t4s_helpers.lab.benchmarks.data [--out FILE.csv]``.

Writes synthetic files in RefCOCO's layout and measures, each in a process of its own on one core:

- opening files of RefCOCO's size (142k expressions, 50k references, 20k photos, 197k outlines):
  seconds and peak memory;
- samples a second, from annotation to the conversation's text, with and without decoding the photo
  (seconds that the process had a core, so that other work on the machine does not count);
- memory for growing files, up to a million outlines: after opening, at its peak, and what reading
  samples adds.

The last column says what the workbook promises.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from PIL import Image
from tqdm.auto import tqdm

from ...codec.encodings import get_encoding
from ...data.prompts import ask_and_answer
from ...data.registry import load
from ...evaluation.provenance import resident

HEIGHT, WIDTH = 480, 640
OUTLINES, REFS, SENTENCES, PHOTOS = 197_000, 50_000, 142_000, 20_000
"""RefCOCO, rounded."""

FORMS = {"pickle": "refcoco", "json": "grefcoco"}
"""The expressions' file, and the data set that has it so."""

MEASURES = (
    ("open seconds", "s", "<20"), ("open core seconds", "s", ""), ("open peak", "MB", "<3000"),
    ("before opening", "MB", ""), ("after opening", "MB", ""), ("added by reading", "MB", ""),
    ("rate without photo", "samples/s", ">2000"), ("rate with photo", "samples/s", ">150"),
)
"""Name, unit, and what is promised of files of RefCOCO's size."""

PICTURES = 64
"""Different pictures among the photos; the rest are further names of them."""


def write_files(folder: Path | str, outlines: int = OUTLINES, form: str = "pickle",
                seed: int = 0) -> Path:
    """Synthetic files with RefCOCO's proportions, for `open_files`.

    Args:
        folder: becomes the root of the layout.
        outlines: number of annotations; references, sentences and photos follow.
        form: a key of `FORMS`.
        seed: of pictures, outlines and words.
    """
    rng, place = np.random.default_rng(seed), Path(folder) / FORMS[form]
    photos = max(1, outlines * PHOTOS // OUTLINES)
    names = _write_photos(Path(folder) / "images/mscoco/images/train2014", photos, rng)
    place.mkdir(parents=True, exist_ok=True)
    shapes = [_outline(rng) for _ in range(512)]
    images = [{"id": k, "file_name": name, "height": HEIGHT, "width": WIDTH, "license": 1,
               "coco_url": f"http://example.org/{name}"} for k, name in enumerate(names)]
    annotations = [{"id": k, "image_id": k * photos // outlines, "category_id": 1, "area": 1.0,
                    "bbox": [1.0, 1.0, 2.0, 2.0], "iscrowd": 0, "segmentation": shapes[k % len(shapes)]}
                   for k in range(outlines)]
    (place / "instances.json").write_text(json.dumps({
        "images": images, "annotations": annotations,
        "categories": [{"id": 1, "name": "thing", "supercategory": "all"}]}))
    refs = list(_references(outlines, photos, names, rng))
    if form == "pickle":
        (place / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    else:
        (place / "grefs(unc).json").write_text(json.dumps(
            [{**ref, "ann_id": [ref["ann_id"]], "no_target": False} for ref in refs]))
    return Path(folder)


def _write_photos(folder: Path, n: int, rng: np.random.Generator) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"COCO_train2014_{k:012d}.jpg" for k in range(n)]
    for k, name in enumerate(names):
        (folder / name).unlink(missing_ok=True)
        if k < PICTURES:
            coarse = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(
                folder / name, quality=90)
        else:
            os.link(folder / names[k % PICTURES], folder / name)
    return names


def _outline(rng: np.random.Generator) -> list[list[float]]:
    """One polygon of 10 to 60 corners, as large as COCO's objects."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(10, 61))))
    radius = rng.uniform(20, 180) * rng.uniform(0.6, 1, len(angles))
    x = np.clip(rng.uniform(100, 540) + radius * np.cos(angles), 0, WIDTH)
    y = np.clip(rng.uniform(80, 400) + radius * np.sin(angles), 0, HEIGHT)
    return [np.round(np.stack([x, y], 1).ravel(), 2).tolist()]


def _references(outlines: int, photos: int, names: Sequence[str], rng: np.random.Generator) -> Iterator[dict]:
    words = np.array("left right small large red man woman dog the in on of near table chair".split())
    refs, number = max(1, outlines * REFS // OUTLINES), 0
    for k in range(refs):
        annotation = k * outlines // refs
        image, sentences = annotation * photos // outlines, []
        for _ in range((k + 1) * SENTENCES // REFS - k * SENTENCES // REFS):
            tokens = [*words[rng.integers(0, len(words), 4)].tolist(), str(number)]
            sentences.append({"sent_id": number, "sent": " ".join(tokens), "tokens": tokens,
                              "raw": " ".join(tokens)})
            number += 1
        yield {"ref_id": k, "ann_id": annotation, "image_id": image, "split": "train", "category_id": 1,
               "file_name": names[image], "sentences": sentences,
               "sent_ids": [one["sent_id"] for one in sentences]}


def open_files(folder: Path | str, form: str):
    """The data set that `write_files` wrote."""
    return load(FORMS[form], "train", folder, counts="off", verify=False)


def read_samples(dataset, indices: Sequence[int], photos: bool) -> float:
    """Make samples and their conversations; samples a second of this process on its core."""
    encoding, start = get_encoding(), time.process_time()
    for index in tqdm(indices, "samples", disable=len(indices) < 5000):
        sample = dataset[int(index)]
        ask_and_answer(sample, encoding, rng=np.random.default_rng([0, int(index)]))
        if photos:
            sample.pixels()
    return len(indices) / (time.process_time() - start)


def measure(folder: str, form: str, n_read: int, n_photos: int) -> list[float]:
    """What one process sees: the number of samples, then `MEASURES` in their order."""
    def memory_mb() -> np.ndarray:  # now, and at its highest
        return np.array(resident(psutil.Process())) / 1e6

    before, start, busy = memory_mb()[0], time.perf_counter(), time.process_time()
    dataset = open_files(folder, form)
    opening = time.perf_counter() - start, time.process_time() - busy
    after, peak = memory_mb()
    order = np.random.default_rng(0).permutation(len(dataset))
    read_samples(dataset, order[:500], photos=False)
    warm = memory_mb()[0]
    rate = read_samples(dataset, order[:n_read], photos=False)
    grown = memory_mb()[0] - warm
    return [len(dataset), *opening, peak, before, after, grown, rate,
            read_samples(dataset, order[:n_photos], photos=True)]


def _measured_apart(*arguments) -> list[float]:
    """`measure` in a fresh process with one thread, so that peaks are its own."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-m", "t4s_helpers.lab.benchmarks.data", "--child", json.dumps(arguments)],
        env={**os.environ, **one}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def benchmark(sizes: Sequence[int], folder: Path | str, full: int = OUTLINES, n_read: int = 20_000,
              n_photos: int = 1000) -> pd.DataFrame:
    """One row a measure and file, with its ``value``, ``unit`` and what is ``promised``."""
    rows = []
    cases = [("pickle", full), ("json", full), *(("json", n) for n in sizes if n != full)]
    for form, outlines in tqdm(cases, "files"):
        place = write_files(Path(folder) / f"{form}-{outlines}", outlines, form)
        samples, *values = _measured_apart(str(place), form, n_read, n_photos)
        rows += [{"measure": name, "form": form, "outlines": outlines, "samples": samples,
                  "value": round(value, 2), "unit": unit, "promised": promised if outlines == full else ""}
                 for (name, unit, promised), value in zip(MEASURES, values, strict=True)]
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from a shell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000],
                        help="outlines in the files that memory is measured on")
    parser.add_argument("--full", type=int, default=OUTLINES, help="outlines of RefCOCO")
    parser.add_argument("--read", type=int, default=20_000, help="samples to read of each")
    parser.add_argument("--photos", type=int, default=1000, help="photos to read of each")
    parser.add_argument("--folder", type=Path, help="for the files; by default a temporary one")
    parser.add_argument("--out", type=Path, help="also write the rows to this CSV file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(measure(*json.loads(options.child))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        rows = benchmark(options.sizes, options.folder or temporary, options.full, options.read,
                         options.photos)
    print(rows.to_string(index=False))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        rows.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
