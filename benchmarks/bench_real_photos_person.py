"""Real photographs with people: person, cat, dog | horse | cow | sheep; no web photo shows a person.

People stand in the later steps' pictures as unlabelled background: the case that background inpainting is for.
Needs REPLAYGEN_DATA with voc_animals/, web_animals/ and weights/. Resumes where it was interrupted; see `photos.py`.

Figures: as of bench_real_photos.py, and
    person_iou: the person's IoU in percent, by row: for each seed a list over steps (joint has one step only).
"""

from __future__ import annotations

from photos import table

if __name__ == "__main__":
    table("real-photos-person", "voc-animals-person", person=True)
