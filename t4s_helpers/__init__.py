"""Helpers of the Text4Seg workbook: image segmentation written and read as text.

Importing the package loads NumPy and the standard library only; PyTorch, transformers and the
other heavy packages are imported by the modules that need them.
"""

__version__ = "0.1.0"
