"""ImageNet's thousand classes, and reviewed tables of which of them stands for a class of VOC or ADE20K. No torch.

Indices are the usual ones, 0 tench to 999 toilet tissue; `imagenet_classes.txt` holds the WordNet words of each class
in that order. An entry is "good" where its pictures show what the data set's annotators would label as the class,
"weak" where they show a special kind of it, a part of it, or it among other things; None where nothing stands for it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from replaygen.classes import nearest_hint
from replaygen.errors import RecipeError

COUNT = 1000
Quality = Literal["good", "weak"]


@dataclass(frozen=True)
class Entry:
    """One reviewed answer: an ImageNet index and its first name, or neither and the reason as `note`."""

    index: int | None
    name: str | None
    quality: Quality | None
    note: str = ""


@functools.cache
def class_names() -> tuple[str, ...]:
    """The 1000 names in order; each is a list of synonyms, "tabby, tabby cat"."""
    text = resources.files("replaygen.generators").joinpath("imagenet_classes.txt").read_text(encoding="ascii")
    return tuple(text.splitlines())


_SPELLINGS = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "tvmonitor": "tv",
    "television": "tv",
    "sofa": "couch",
}


def normalised(name: str) -> str:
    """A name without case, "_", "-", spaces and other signs, in one spelling: "Dining_Table" -> "diningtable"."""
    plain = "".join(letter for letter in name.casefold() if letter.isalnum())
    return _SPELLINGS.get(plain, plain)


class Names:
    """A list of class names, each maybe with synonyms, "tabby, tabby cat", to look words up in.

    Args:
        names: in the order of their indices.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._first: dict[str, list[int]] = {}
        self._any: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            known = synonyms(name)
            for word in {normalised(name), normalised(name.split(",")[0])}:
                self._first.setdefault(word, []).append(index)
            for word in known:
                self._any.setdefault(word, []).append(index)

    def called(self, word: str) -> int | None:
        """The one class whose name, or first synonym, is `word`."""
        found = self._first.get(normalised(word), []) if normalised(word) else []
        return found[0] if len(found) == 1 else None

    def known_as(self, text: str) -> tuple[int, ...]:
        """The classes called exactly `text`; else those that share a synonym with it."""
        exact = tuple(index for index, name in enumerate(self.names) if name == text)
        return exact or tuple(sorted({index for word in synonyms(text) for index in self._any.get(word, [])}))

    def find(self, text: str, *, where: str = "") -> int:
        """The one class known as `text`. RecipeError where none is (with the nearest name), or several are."""
        found = self.known_as(text)
        if len(found) > 1:
            both = " or ".join(f"{index} ({self.names[index]})" for index in found[:4])
            raise RecipeError(
                f"the generator has {len(found)} classes {text!r}", where=where, hint=f"give an index: {both}"
            )
        if not found:
            words = [word.strip() for name in self.names for word in name.split(",")]
            hint = f"{nearest_hint(text, words)} Or give an index in 0..{len(self.names) - 1}"
            raise RecipeError(f"the generator has no class {text!r}", where=where, hint=hint)
        return found[0]

    def agrees(self, index: int, text: str) -> bool:
        """Whether class `index` shares a synonym with `text`."""
        return not synonyms(self.names[index]).isdisjoint(synonyms(text))


def synonyms(name: str) -> frozenset[str]:
    """The normalised synonyms of a name, and the name as a whole."""
    return frozenset(normalised(part) for part in (name, *name.split(","))) - {""}


def table_for(class_names: Iterable[str]) -> Mapping[str, Entry] | None:
    """The reviewed table whose data set has all of these classes (background aside): VOC, ADE20K, or None."""
    wanted = {normalised(name) for name in class_names} - {"background"}
    for table in (VOC, ADE20K):
        if wanted and wanted <= {normalised(name) for name in table}:
            return table
    return None


def _good(index: int, name: str, note: str = "") -> Entry:
    return Entry(index, name, "good", note)


def _weak(index: int, name: str, note: str) -> Entry:
    return Entry(index, name, "weak", note)


def _none(reason: str) -> Entry:
    return Entry(None, None, None, reason)


_STUFF = "ImageNet names objects; this is the ground or backdrop of many classes"
_ABSENT = "not among the thousand"

VOC: dict[str, Entry] = {
    "aeroplane": _good(404, "airliner"),
    "bicycle": _good(671, "mountain bike"),
    "bird": _good(15, "robin", "one of 59 kinds"),
    "boat": _good(814, "speedboat", "sails: 914 yawl"),
    "bottle": _good(440, "beer bottle"),
    "bus": _good(874, "trolleybus", "yellow: 779 school bus"),
    "car": _good(436, "beach wagon", "ordinary cars, as in streets"),
    "cat": _good(281, "tabby"),
    "chair": _good(559, "folding chair"),
    "cow": _good(345, "ox"),
    "diningtable": _good(532, "dining table"),
    "dog": _good(207, "golden retriever", "one of 118 breeds"),
    "horse": _good(339, "sorrel"),
    "motorbike": _good(665, "moped", "no motorcycle among the thousand"),
    "person": _weak(982, "groom", "people in formal dress, often two; no class is simply a person"),
    "pottedplant": _good(738, "pot"),
    "sheep": _good(348, "ram"),
    "sofa": _good(831, "studio couch"),
    "train": _good(547, "electric locomotive", "also 466 bullet train"),
    "tvmonitor": _good(664, "monitor", "also 851 television"),
}
"""The 20 classes of Pascal VOC, by the names of `replaygen.datasets.voc`."""

ADE20K: dict[str, Entry] = {
    "wall": _none(_STUFF),
    "building": _weak(698, "palace", "one kind; streets of plain houses are in no class"),
    "sky": _none(_STUFF),
    "floor": _none(_STUFF),
    "tree": _none("trees are in the background only; no class is a tree"),
    "ceiling": _none(_STUFF),
    "road": _none(_STUFF),
    "bed": _good(564, "four-poster"),
    "windowpane": _weak(905, "window shade", "the window behind it"),
    "grass": _none(_STUFF),
    "cabinet": _good(495, "china cabinet"),
    "sidewalk": _none(_STUFF),
    "person": _none("people in scenes are in no class; 982 groom shows people in formal dress from near"),
    "earth": _none(_STUFF),
    "door": _weak(799, "sliding door", "one kind, also of vans"),
    "table": _good(532, "dining table"),
    "mountain": _good(970, "alp"),
    "plant": _weak(738, "pot", "plants in pots only"),
    "curtain": _weak(854, "theater curtain", "stages, not windows"),
    "chair": _good(559, "folding chair"),
    "car": _good(436, "beach wagon"),
    "water": _weak(975, "lakeside", "lakes only, as for `lake`"),
    "painting": _none(_ABSENT),
    "sofa": _good(831, "studio couch"),
    "shelf": _weak(453, "bookcase", "shelves of books, as for `bookcase`"),
    "house": _weak(660, "mobile home", "one kind"),
    "sea": _good(978, "seashore"),
    "mirror": _none("475 car mirror is another thing than a mirror in a room"),
    "rug": _weak(741, "prayer rug", "one kind, often seen flat from above"),
    "field": _weak(984, "rapeseed", "yellow fields only"),
    "armchair": _weak(765, "rocking chair", "one kind, mostly of wood"),
    "seat": _none("rows of seats are in no class"),
    "fence": _good(716, "picket fence"),
    "desk": _good(526, "desk"),
    "rock": _weak(972, "cliff", "walls of rock, no boulders"),
    "wardrobe": _good(894, "wardrobe"),
    "lamp": _good(846, "table lamp"),
    "bathtub": _good(435, "bathtub"),
    "railing": _weak(421, "bannister", "of stairs only, as for `bannister`"),
    "cushion": _weak(721, "pillow", "as for `pillow`"),
    "base": _good(708, "pedestal"),
    "box": _good(478, "carton"),
    "column": _none("columns are only parts of buildings"),
    "signboard": _good(919, "street sign"),
    "chest of drawers": _good(493, "chiffonier"),
    "counter": _none("counters are only parts of shops"),
    "sand": _weak(977, "sandbar", "beside water only"),
    "sink": _good(896, "washbasin"),
    "skyscraper": _none(_ABSENT),
    "fireplace": _weak(556, "fire screen", "the fireplace behind it"),
    "refrigerator": _good(760, "refrigerator"),
    "grandstand": _none(_ABSENT),
    "path": _none(_STUFF),
    "stairs": _weak(421, "bannister", "the stairs beside it"),
    "runway": _none(_STUFF),
    "case": _weak(495, "china cabinet", "one kind, as for `cabinet`"),
    "pool table": _good(736, "pool table"),
    "pillow": _good(721, "pillow"),
    "screen door": _weak(904, "window screen", "the mesh, of windows"),
    "stairway": _weak(421, "bannister", "the stairs beside it, as for `stairs`"),
    "river": _none("no class is a river; 975 lakeside shows lakes"),
    "bridge": _good(839, "suspension bridge"),
    "bookcase": _good(453, "bookcase"),
    "blind": _good(905, "window shade"),
    "coffee table": _weak(532, "dining table", "higher tables, as for `table`"),
    "toilet": _good(861, "toilet seat"),
    "flower": _good(985, "daisy", "one kind"),
    "book": _weak(454, "bookshop", "shelves of books"),
    "hill": _weak(979, "valley", "the slopes around it"),
    "bench": _good(703, "park bench"),
    "countertop": _none("no class is a kitchen"),
    "stove": _good(827, "stove"),
    "palm": _none("trees are in the background only; no class is a palm"),
    "kitchen island": _none("no class is a kitchen"),
    "computer": _good(527, "desktop computer"),
    "swivel chair": _weak(423, "barber chair", "one kind"),
    "boat": _good(814, "speedboat"),
    "bar": _none("bar counters are only parts of restaurants"),
    "arcade machine": _weak(800, "slot", "slot machines"),
    "hovel": _weak(853, "thatch", "huts among other thatched roofs"),
    "bus": _good(874, "trolleybus"),
    "towel": _good(434, "bath towel"),
    "light": _weak(818, "spotlight", "one kind; 626 `lighter, light` is another thing"),
    "truck": _good(867, "trailer truck"),
    "tower": _weak(442, "bell cote", "one kind"),
    "chandelier": _none(_ABSENT),
    "awning": _none(_ABSENT),
    "streetlight": _none(_ABSENT),
    "booth": _none(_ABSENT),
    "television": _good(851, "television"),
    "airplane": _good(404, "airliner"),
    "dirt track": _none(_STUFF),
    "apparel": _weak(610, "jersey", "one garment"),
    "pole": _weak(733, "pole", "poles of many kinds, few of streets"),
    "land": _none(_STUFF),
    "bannister": _good(421, "bannister"),
    "escalator": _none(_ABSENT),
    "ottoman": _none(_ABSENT),
    "bottle": _good(440, "beer bottle"),
    "buffet": _weak(493, "chiffonier", "as for `chest of drawers`"),
    "poster": _none(_ABSENT),
    "stage": _good(819, "stage"),
    "van": _good(656, "minivan"),
    "ship": _good(628, "liner"),
    "fountain": _good(562, "fountain"),
    "conveyer belt": _none(_ABSENT),
    "canopy": _none("only parts of other things, such as 564 four-poster"),
    "washer": _good(897, "washer"),
    "plaything": _weak(850, "teddy", "one toy"),
    "swimming pool": _none(_ABSENT),
    "stool": _none(_ABSENT),
    "barrel": _good(427, "barrel"),
    "basket": _good(588, "hamper"),
    "waterfall": _none(_ABSENT),
    "tent": _good(672, "mountain tent"),
    "bag": _good(748, "purse"),
    "minibike": _good(665, "moped"),
    "cradle": _good(516, "cradle"),
    "oven": _weak(827, "stove", "the oven below it, as for `stove`"),
    "ball": _good(805, "soccer ball"),
    "food": _weak(963, "pizza", "one dish"),
    "step": _none("steps are only parts of stairs"),
    "tank": _weak(900, "water tower", "one kind; 847 `tank` is an army's"),
    "trade name": _none("a mark on other things"),
    "microwave": _good(651, "microwave"),
    "pot": _good(738, "pot"),
    "animal": _weak(345, "ox", "one kind"),
    "bicycle": _good(671, "mountain bike"),
    "lake": _good(975, "lakeside"),
    "dishwasher": _good(534, "dishwasher"),
    "screen": _weak(598, "home theater", "the projection screen among seats; 782 `screen` is a CRT"),
    "blanket": _good(750, "quilt"),
    "sculpture": _weak(708, "pedestal", "statues on pedestals"),
    "hood": _none(_ABSENT),
    "sconce": _none(_ABSENT),
    "vase": _good(883, "vase"),
    "traffic light": _good(920, "traffic light"),
    "tray": _good(868, "tray"),
    "ashcan": _good(412, "ashcan"),
    "fan": _good(545, "electric fan"),
    "pier": _good(718, "pier"),
    "crt screen": _good(782, "screen"),
    "plate": _good(923, "plate", "with food on it"),
    "monitor": _good(664, "monitor"),
    "bulletin board": _none(_ABSENT),
    "shower": _weak(794, "shower curtain", "the curtain before it"),
    "radiator": _good(753, "radiator"),
    "glass": _good(572, "goblet"),
    "clock": _good(892, "wall clock"),
    "flag": _good(557, "flagpole", "with its flag"),
}
"""The 150 classes of ADE20K's scene parsing benchmark, by the names of `replaygen/datasets/ade20k_classes.txt`."""
