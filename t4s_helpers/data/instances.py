"""Single objects in text: "dog 1", "dog 2", numbered in the order in which the text comes to them.

**Order.** The first object of a class that a descriptor mentions has number 1, the next new one number 2:
reading order of the objects' first cells. A number then tells an object from those *before* it, which stand
in the answer already, so that it can be learned as the rest of the text is: a run goes on with the number
above it, or takes the next one. Numbers by centres would have to be known at an object's first cell,
before the model has come to the others. Scores never depend on numbers.

- Where objects touch or overlap, a cell belongs to the one that covers most of it, as of any labels
  (`t4s_helpers.codec.grid.masks_to_grid`); the parts of an object that is cut in two have one number.
- An object too small to win a cell gets one that it touches. Where there are more objects than cells,
  those left over are not written, and no number is left out for them.
- A class by its name alone, "dog", is what is not told apart: crowds, and objects beyond the `MOST` that
  have numbers. So nothing that was asked for is taught as background. It is no object where answers are
  scored: crowds do not count, objects without a number are missed.
- A class that is asked for and not there has no cells.

How many objects there are is for the model to say: each request offers all numbers, used or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..codec.encodings import Encoding, check_labels
from ..codec.grid import masks_to_grid
from .sample import Sample

MOST = 8
"""Objects of a class that have numbers."""


def numbered(classes: Sequence[str]) -> tuple[str, ...]:
    """The labels of a request for the objects of some classes: each name alone, then with its numbers.

    Raises:
        DescriptorError: a class that is named like the object of another one.

    >>> numbered(["dog", "cat"])[:3], numbered(["dog", "cat"])[MOST + 1]
    (('dog', 'dog 1', 'dog 2'), 'cat')
    """
    return check_labels([f"{name} {n}" if n else name
                         for name in check_labels(classes) for n in range(MOST + 1)])


def classes_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The classes of a request, `numbered` read back.

    >>> classes_of(numbered(["dog", "cat"]))
    ('dog', 'cat')
    """
    return tuple(labels[::MOST + 1])


def class_of(label: str) -> str:
    """The class of a label with a number.

    >>> class_of("traffic light 2")
    'traffic light'
    """
    return label.rpartition(" ")[0]


def numbered_grid(sample: Sample, classes: Sequence[str], encoding: Encoding) -> np.ndarray:
    """The objects of some of a sample's classes as a label grid over `numbered` labels.

    Args:
        sample: of the task ``instances``.
        classes: those asked for, in this order; a class that the sample does not name has no objects.
        encoding: whose grid it is, and in whose order of cells the objects are numbered.

    Returns:
        int32 ``(rows, cols)``: 0 is others, ``k`` is ``numbered(classes)[k - 1]``.
    """
    masks, owners = sample.instances()
    crowds, names = sample.crowds(), [sample.labels[owner] for owner in owners]
    asked = [k for k, name in enumerate(names) if name in classes]
    held = masks_to_grid(masks[asked], encoding.grid_size)
    values, first = np.unique(encoding.arrange(held), return_index=True)
    meaning = np.zeros(len(asked) + 1, np.int32)
    seen: Counter[str] = Counter()
    for value in values[np.argsort(first)]:
        if value == 0:
            continue
        name, crowd = names[asked[value - 1]], crowds[asked[value - 1]]
        seen[name] += not crowd
        number = 0 if crowd or seen[name] > MOST else seen[name]
        meaning[value] = (MOST + 1) * classes.index(name) + number + 1
    return meaning[held]
