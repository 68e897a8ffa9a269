"""Where samples come from: rendered scenes, bundled photos, and every data set of the paper.

:func:`load` opens a data set by name and ``t4s data`` lists them. Importing
this package imports none of the readers, so NumPy alone is enough for it.
"""

from __future__ import annotations

from .dataset import Dataset, Excluded
from .registry import ENTRIES, load
from .sample import TASKS, Sample, SampleError, read_image

__all__ = ["ENTRIES", "TASKS", "Dataset", "Excluded", "Sample", "SampleError", "load",
           "read_image"]
