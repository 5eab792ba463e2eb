"""Real photographs: cat, dog | horse | cow | sheep on Pascal VOC pictures, replay from class-named web photos.

Needs REPLAYGEN_DATA with voc_animals/, web_animals/ and weights/. Resumes where it was interrupted; see `photos.py`.

Figures:
    finetune, recall, recall_no_inpaint, exemplar, joint: after the last step, lists over seeds, percent:
        all, old, new mIoU (background counted in all and old), per_class IoU by name, and
        cow_to_sheep, sheep_to_cow: share of one class's pixels that were predicted as the other.
    gap_closed: of RECALL between finetune and joint, percent, one a seed.
    seconds_one_seed_alone: wall seconds of seed 0's whole table; seconds_per_seed: of all seeds / seeds, which share
        what does not depend on the seed. cpu_seconds_per_seed: of all processes.
    stage_seconds_*: the same by the records, inside stages only.
"""

from __future__ import annotations

from photos import table

if __name__ == "__main__":
    table("real-photos", "voc-animals-web")
