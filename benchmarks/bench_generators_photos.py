"""Real photographs with generators fitted on each step's own images as the only replay; whatever it scores.

A small GAN of 64 x 64 pixels on a few hundred pictures, 2,400 iterations in all. The row `no_replay` has the same
background inpainting and no replay: what the generated pictures must add to. One seed: a table takes half an hour.

Figures: as in `real-photos`, and
    quality: of each class (seed 0): found %, diversity %, KID x 1000 with its floor, memorised %.
"""

from __future__ import annotations

from photos import TINY, table

ROWS = ("finetune", "no_replay", "recall_fitted", "joint")

if __name__ == "__main__":
    quick = {key: value for key, value in TINY.items() if not key.startswith("replay.")}
    quick |= {
        "replay.fitted.count": 4, "replay.fitted.fit.iterations": 4, "replay.fitted.fit.warm_iterations": 2,
        "replay.fitted.fit.size": 32,
    }  # fmt: skip
    table("generators-photos", "voc-animals-fitted", rows=ROWS, main="recall_fitted", quick=quick, seeds=(0,))
