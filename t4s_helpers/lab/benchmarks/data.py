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
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from PIL import Image
from tqdm.auto import tqdm

from ...codec.encodings import get_encoding
from ...data.prompts import ask_and_answer
from ...data.registry import load

HEIGHT, WIDTH = 480, 640
OUTLINES, REFS, SENTENCES, PHOTOS = 197_000, 50_000, 142_000, 20_000
"""RefCOCO, rounded."""

TARGETS = {
    "open seconds": ("<", 20), "open peak": ("<", 3000), "rate without photo": (">", 2000),
    "rate with photo": (">", 150),
}
_SHAPES, _PICTURES = 512, 64


def write_files(folder: Path | str, outlines: int = OUTLINES, form: str = "pickle",
                seed: int = 0) -> Path:
    """Synthetic files with RefCOCO's proportions, for ``load("refcoco" or "grefcoco", "train")``.

    Args:
        folder: becomes the root of the layout.
        outlines: number of annotations; references, sentences and photos follow.
        form: of the expressions, ``pickle`` as RefCOCO's or ``json`` as gRefCOCO's.
        seed: of outlines and words.
    """
    folder = Path(folder)
    name = {"pickle": "refcoco", "json": "grefcoco"}[form]
    (folder / name).mkdir(parents=True, exist_ok=True)
    photos = max(1, outlines * PHOTOS // OUTLINES)
    _write_photos(folder / "images/mscoco/images/train2014", photos, seed)
    _write_outlines(folder / name / "instances.json", outlines, photos, seed)
    refs = _references(outlines, photos, seed)
    if form == "pickle":
        (folder / name / "refs(unc).p").write_bytes(pickle.dumps(list(refs), protocol=2))
    else:
        with open(folder / name / "grefs(unc).json", "w", encoding="utf-8") as file:
            file.writelines(_listed(({**ref, "ann_id": [ref["ann_id"]], "no_target": False}
                                     for ref in refs), "[", "]"))
    return folder


def _write_photos(folder: Path, n: int, seed: int) -> None:
    """``n`` files, most of them further names of a few pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for k in _bar(range(n), "photos"):
        path = folder / _photo(k)
        path.unlink(missing_ok=True)
        if k < _PICTURES:
            coarse = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(
                path, quality=90)
        else:
            os.link(folder / _photo(k % _PICTURES), path)


def _photo(k: int) -> str:
    return f"COCO_train2014_{k:012d}.jpg"


def _write_outlines(path: Path, n: int, photos: int, seed: int) -> None:
    shapes = [json.dumps(shape) for shape in _shapes(seed)]
    with open(path, "w", encoding="utf-8") as file:
        images = ({"id": k, "file_name": _photo(k), "height": HEIGHT, "width": WIDTH,
                   "license": 1, "coco_url": f"http://example.org/{_photo(k)}"}
                  for k in range(photos))
        file.writelines(_listed(images, '{"images": [', '], "annotations": ['))
        for k in _bar(range(n), "outlines"):
            file.write(f'{"," if k else ""}{{"id": {k}, "image_id": {k * photos // n}, "category_id": 1, '
                       f'"area": 1.0, "bbox": [1.0, 1.0, 2.0, 2.0], "iscrowd": 0, '
                       f'"segmentation": {shapes[k % _SHAPES]}}}')
        file.write('], "categories": [{"id": 1, "name": "thing", "supercategory": "all"}]}')


def _listed(values, opening: str, closing: str) -> Iterator[str]:
    yield opening
    for k, value in enumerate(values):
        yield ("," if k else "") + json.dumps(value)
    yield closing


def _shapes(seed: int) -> list[list[list[float]]]:
    """Outlines of 10 to 60 corners, as large as COCO's objects."""
    rng = np.random.default_rng([seed, 1])
    shapes = []
    for _ in range(_SHAPES):
        n = int(rng.integers(10, 61))
        angles = np.sort(rng.uniform(0, 2 * np.pi, n))
        radius = rng.uniform(20, 180) * rng.uniform(0.6, 1, n)
        x = np.clip(rng.uniform(100, 540) + radius * np.cos(angles), 0, WIDTH)
        y = np.clip(rng.uniform(80, 400) + radius * np.sin(angles), 0, HEIGHT)
        shapes.append([np.round(np.stack([x, y], 1).ravel(), 2).tolist()])
    return shapes


def _references(outlines: int, photos: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([seed, 2])
    words = "left right small large red man woman dog the in on of near table chair".split()
    refs = max(1, outlines * REFS // OUTLINES)
    number = 0
    for k in _bar(range(refs), "references"):
        annotation = k * outlines // refs
        image = annotation * photos // outlines
        sentences = []
        for _ in range((k + 1) * SENTENCES // REFS - k * SENTENCES // REFS):
            tokens = [words[i] for i in rng.integers(0, len(words), 4)] + [str(number)]
            sentences.append({"sent_id": number, "sent": " ".join(tokens), "tokens": tokens,
                              "raw": " ".join(tokens)})
            number += 1
        yield {"ref_id": k, "ann_id": annotation, "image_id": image, "split": "train",
               "category_id": 1, "file_name": _photo(image), "sentences": sentences,
               "sent_ids": [s["sent_id"] for s in sentences]}


def open_files(folder: Path | str, form: str):
    """The data set that `write_files` wrote."""
    name = {"pickle": "refcoco", "json": "grefcoco"}[form]
    return load(name, "train", folder, counts="off", verify=False)


def read_samples(dataset, indices: Sequence[int], photos: bool, bar: str = "") -> float:
    """Make samples and their conversations; samples a second of this process on its core."""
    encoding = get_encoding()
    start = time.process_time()
    for index in _bar(indices, bar) if bar else indices:
        sample = dataset[int(index)]
        ask_and_answer(sample, encoding, rng=np.random.default_rng([0, int(index)]))
        if photos:
            sample.pixels()
    return len(indices) / (time.process_time() - start)


def growth_per_access(dataset, n: int = 1000, warm_up: int = 500) -> float:
    """Bytes that stay allocated for each sample read, after some have filled the fixed caches.

    The least of three spans of ``n`` samples: what grows, grows in each of them.
    """
    order = np.random.default_rng(0).permutation(len(dataset))
    tracemalloc.start()  # first, so that what the caches let go of later is known too
    try:
        read_samples(dataset, order[:warm_up], photos=False)
        held = [tracemalloc.get_traced_memory()[0]]
        for k in range(3):
            read_samples(dataset, order[warm_up + k * n:warm_up + (k + 1) * n], photos=False)
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return float(np.diff(held).min()) / n


def measure(folder: str, form: str, n_read: int, n_photos: int) -> dict[str, float]:
    """What one process sees; see the module. Memory in MB."""
    process = psutil.Process()
    start_mb = process.memory_info().rss / 1e6
    start, busy = time.perf_counter(), time.process_time()
    dataset = open_files(folder, form)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak_mb, opened_mb = _peak_mb(), process.memory_info().rss / 1e6
    order = np.random.default_rng(0).permutation(len(dataset))
    read_samples(dataset, order[:500], photos=False)
    warm_mb = process.memory_info().rss / 1e6
    rate = read_samples(dataset, order[:n_read], False, "samples")
    grown_mb = process.memory_info().rss / 1e6 - warm_mb
    with_photo = read_samples(dataset, order[:n_photos], True, "with photos")
    return {"samples": len(dataset), "seconds": seconds, "busy": busy, "start_mb": start_mb,
            "peak_mb": peak_mb,
            "opened_mb": opened_mb, "grown_mb": grown_mb, "rate": rate,
            "rate_with_photo": with_photo}


def _peak_mb() -> float:
    """This process's own peak; ``ru_maxrss`` would count its parent's memory too on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _measured_apart(*arguments) -> dict[str, float]:
    """`measure` in a fresh process with one thread, so that peaks are its own."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-m", "t4s_helpers.lab.benchmarks.data", "--child", json.dumps(arguments)],
        env={**os.environ, **one}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


MEASURES = (
    ("open seconds", "seconds", "s"), ("open core seconds", "busy", "s"), ("open peak", "peak_mb", "MB"),
    ("before opening", "start_mb", "MB"), ("after opening", "opened_mb", "MB"),
    ("added by reading", "grown_mb", "MB"), ("rate without photo", "rate", "samples/s"),
    ("rate with photo", "rate_with_photo", "samples/s"),
)
"""Name in the table, key of `measure`, unit."""


def benchmark(sizes: Sequence[int], folder: Path | str, full: int = OUTLINES, n_read: int = 20_000,
              n_photos: int = 1000) -> pd.DataFrame:
    """One row a measure and file, with its ``value``, ``unit`` and what is ``promised``."""
    rows = []
    cases = [("pickle", full), ("json", full), *(("json", n) for n in sizes if n != full)]
    for form, outlines in cases:
        place = write_files(Path(folder) / f"{form}-{outlines}", outlines, form)
        found = _measured_apart(str(place), form, n_read, n_photos)
        rows += [{"measure": name, "form": form, "outlines": outlines, "samples": found["samples"],
                  "value": round(found[key], 2), "unit": unit,
                  "promised": "".join(map(str, TARGETS.get(name, ()))) if outlines == full else ""}
                 for name, key, unit in MEASURES]
    return pd.DataFrame(rows)


def _bar(values, name: str):
    return tqdm(values, name, disable=len(values) < 5000)


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
