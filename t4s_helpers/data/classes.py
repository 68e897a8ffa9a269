"""Class lists of the semantic data sets, and the pixel values that stand for them.

Names and numbers are those of the official releases and stand in ``classes.json``; value ``k`` of
a class map is entry ``k - 1``.

- COCO-Stuff: 80 things and 91 stuff classes, numbered 1 to 182 with 11 numbers unused
  (https://github.com/nightrome/cocostuff, labels.txt; Caesar et al., CVPR 2018).
- ADE20K-150: the first name of each row of objectInfo150.txt
  (https://github.com/CSAILVision/sceneparsing; Zhou et al., CVPR 2017).
- PASCAL Context-59: the 59 most frequent of 459 labels, in the order of 59_labels.txt
  (https://cs.stanford.edu/~roozbeh/pascal-context; Mottaghi et al., CVPR 2014).
- PASCAL VOC-20: http://host.robots.ox.ac.uk/pascal/VOC/voc2012 (Everingham et al.).
"""

from __future__ import annotations

import json
from pathlib import Path

_LISTS = {name: tuple(entries) for name, entries in json.loads(
    Path(__file__).with_name("classes.json").read_text(encoding="utf-8")).items()}

COCO_STUFF_IDS = {number: name for number, name in enumerate(_LISTS["coco_things"] + _LISTS["coco_stuff"], 1)
                  if not name.startswith("-")}
"""COCO-Stuff number (1 to 182) -> name; the pixel value of the 164k maps is one less.

Things have the numbers 1 to 91; those with a minus in the file have no outline anywhere.
"""

COCO_STUFF = tuple(COCO_STUFF_IDS.values())
"""171 names: things, then stuff."""

ADE20K_150, VOC_20, CONTEXT_59 = _LISTS["ade20k_150"], _LISTS["voc_20"], _LISTS["context_59"]

CONTEXT_459 = dict(zip(sorted(CONTEXT_59), _LISTS["context_459"], strict=True))
"""Name -> its number among the 459 labels of the original annotation files, which are sorted."""
