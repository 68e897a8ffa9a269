"""What an answer costs: passes, tokens and milliseconds by decoding mode, encoding, grid and batch.

``python -m t4s_helpers.bench_decoding`` prints the table for the embedded model.
"""

from __future__ import annotations

import numpy as np

from .decoding import MODES, answer_samples

LIMIT = 9000
"""Tokens after which an answer is cut: a full-length one of a 32x32 grid is shorter."""


def time_decoding(backbone, samples, mode: str = "fast", size=16, scheme: str = "rrle",
                  batch: int = 1) -> dict:
    """Answer requests and time it; their pictures are read again for each.

    Args:
        backbone: a `t4s_helpers.backbones.Backbone`.
        samples: requests that want a mask.
        mode, size, scheme, batch: as for `t4s_helpers.decoding.generate`. Mode ``plain`` writes
            whatever encoding the model has learned.

    Returns:
        a row: the settings, ``n``, medians over the answers of ``tokens``, ``passes`` (the one over
        the prompt not counted) and ``ms`` (wall clock, of its batch divided by the batch), and the
        quartiles ``ms_q1`` and ``ms_q3``.
    """
    answers = [answer for answer, _ in answer_samples(
        backbone, samples, size, scheme, mode=mode, batch=batch, progress=False,
        max_new_tokens=LIMIT if mode != "plain" else None)]
    passes = [a.trace.passes if a.trace else a.n_tokens for a in answers]
    first, middle, third = np.percentile([1000 * a.seconds for a in answers], (25, 50, 75))
    return {"mode": mode, "scheme": scheme, "size": size, "batch": batch, "n": len(answers),
            "tokens": float(np.median([a.n_tokens for a in answers])),
            "passes": float(np.median(passes)), "ms": middle, "ms_q1": first, "ms_q3": third}


def written(row: dict) -> str:
    """A row of the table as a line of text."""
    return (f"{row['mode']:12}{row['scheme']:6}{row['size']:3}  batch {row['batch']}  "
            f"{row['tokens']:6.0f} tokens {row['passes']:6.0f} passes {row['ms']:8.0f} ms")


def main() -> None:
    import argparse

    from .backbones import load_backbone
    from .data.expressions import scene_samples
    from .rle import SCHEMES

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=8, help="requests per setting")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 24, 32])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()
    backbone = load_backbone("embedded", adapter="scenes")
    samples = scene_samples("test", args.samples, "gres", start=10_000)
    for scheme in SCHEMES[::-1]:
        for size in args.sizes:
            for mode in MODES if (scheme, size) == ("rrle", 16) else MODES[1:]:
                for batch in args.batches:
                    print(written(time_decoding(backbone, samples, mode, size, scheme, batch)),
                          flush=True)


if __name__ == "__main__":
    main()
