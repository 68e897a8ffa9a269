"""Where samples come from: rendered scenes, bundled photos, RefCOCO-family files, COCO folders.

Every reader returns a list of :class:`~t4s_helpers.data.sample.Sample`. Importing this package
imports none of the readers, so NumPy alone is enough for it.
"""

from __future__ import annotations

from .sample import TASKS, Sample, SampleError, read_image

__all__ = ["TASKS", "Sample", "SampleError", "read_image"]
