"""Write the README's results from `benchmarks/results/*.json`, between its `<!-- ... -->` marks."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ROWS = ("finetune", "recall_no_inpaint", "recall", "exemplar", "joint")


def spread(values: list[float]) -> str:
    """Mean ± standard deviation; a dash where there is nothing."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


def seeds(values: list[float]) -> str:
    """How many seeds a list holds, in words."""
    return f"{len(values)} seed{'s' if len(values) != 1 else ''}"


def load(name: str) -> dict[str, Any] | None:
    """A benchmark's result, None where it was not run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def demo() -> list[str]:
    """The demo's table."""
    told = load("demo")
    if told is None:
        return []
    figures = told["figures"]
    lines = [
        f"**Digit scenes, 5-1** (`{told['command']}`, {len(figures['gap_closed'])} seeds; one seed takes "
        f"{figures['seconds']:.0f} s on 2 cores): RECALL closes **{statistics.fmean(figures['gap_closed']):.0f} %** of "
        "the gap between fine-tuning and joint training.",
        "",
        "| | fine-tuning | RECALL | joint |",
        "| --- | ---: | ---: | ---: |",
        "| all | " + " | ".join(spread(figures[row]) for row in ("finetune", "recall", "joint")) + " |",
        "",
    ]
    return lines


def photos(name: str, title: str) -> list[str]:
    """The table of a benchmark on real photographs."""
    told = load(name)
    if told is None:
        return []
    figures = told["figures"]
    lines = [
        f"**{title}** (`{told['command']}`, {seeds(figures['recall']['all'])}; RECALL closes "
        f"{statistics.fmean(figures['gap_closed']):.1f} % of the gap):",
        "",
        "| method | old | new | all | cow → sheep | sheep → cow |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in ROWS:
        values = figures[row]
        cells = [spread(values[key]) for key in ("old", "new", "all", "cow_to_sheep", "sheep_to_cow")]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    if "person_iou" in figures:
        lines += [
            "",
            "IoU of person after each step (people stand unlabelled in later pictures, and are in no photo):",
            "",
        ]
        steps = len(figures["person_iou"]["recall"][0])
        lines.append("| method | " + " | ".join(f"step {k}" for k in range(steps)) + " |")
        lines.append("| --- |" + " ---: |" * steps)
        for row in ("recall", "recall_no_inpaint"):
            course = figures["person_iou"][row]
            lines.append(f"| {row} | " + " | ".join(spread([seed[k] for seed in course]) for k in range(steps)) + " |")
    return [*lines, ""]


def generators() -> list[str]:
    """What generated replay is worth, and what it costs."""
    told = load("generators")
    if told is None:
        return []
    figures = told["figures"]
    closed = {row: spread(figures[f"{name}_gap_closed"]) for name, row in
              (("biggan", "recall_gan"), ("fitted", "recall_fitted"))}  # fmt: skip
    lines = [
        f"**Digit scenes, generated replay alone** (`{told['command']}`, {seeds(figures['joint'])}; nothing is "
        "kept of old images but a generator):",
        "",
        "| | all | gap closed, % | class found, % | copies of training images, % |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    titles = {"finetune": "fine-tuning", "recall_gan": "RECALL, a BigGAN that existed before",
              "recall_fitted": "RECALL, a BigGAN fitted on each step's own images", "joint": "joint"}  # fmt: skip
    for row, title in titles.items():
        source = row.removeprefix("recall_")
        shares = [
            f"{100 * figures[name][source]:.1f}" if figures[name].get(source) is not None else ""
            for name in ("found_share", "memorised_share")
        ]
        lines.append(f"| {title} | {spread(figures[row])} | {closed.get(row, '')} | " + " | ".join(shares) + " |")
    ratios = figures["throughput_ratio"]["cpu"]
    fast = ", ".join(
        f"{one['best']:.1f}x at {size} ({one['best_is'].removeprefix('ours ')})" for size, one in ratios.items()
    )
    lines += ["", f"Drawing from BigGAN-deep, against the loop of its package's README on one CPU thread: {fast}.", ""]
    real = load("generators-photos")
    if real is not None:
        lines += [_real_photos(real), ""]
    return lines


def _real_photos(told: dict[str, Any]) -> str:
    """What replay from fitted generators adds, in mIoU over all classes, to background inpainting without replay."""
    rows = {name: told["figures"][name]["all"] for name in told["figures"]["rows"]}
    without, fitted = rows["no_replay"], rows["recall_fitted"]
    gains = [mine - other for mine, other in zip(fitted, without, strict=True)]
    points = spread([math.copysign(1.0, statistics.fmean(gains)) * gain for gain in gains])
    verb, to = ("adds", "to") if statistics.fmean(gains) >= 0 else ("takes", "from")
    return (
        f"On real photographs (`{told['command']}`, {seeds(fitted)}) replay from a small GAN fitted on each step's own "
        f"images {verb} {points} points {to} inpainting without replay ({spread(without)} → {spread(fitted)}); "
        f"fine-tuning {spread(rows['finetune'])}, joint {spread(rows['joint'])}."
    )


def crawler() -> list[str]:
    """What photos of other people are worth, and what fetching them costs."""
    lines: list[str] = []
    flickr, crawl = load("flickr"), load("crawl")
    if flickr is not None:
        figures = flickr["figures"]
        rows = {name: spread(figures[name]["all"]) for name in figures["rows"]}
        lines += [
            f"**Photos through Flickr's protocol** (`{flickr['command']}`, {seeds(figures['recall']['all'])}; the "
            "scenario of the next table, a local server instead of Flickr): RECALL on searched, fetched and screened "
            f"photos {rows['recall']}, on photos of the same folder {rows['recall_folder']}; fine-tuning "
            f"{rows['finetune']}, joint {rows['joint']}. Maker, page and licence are known of "
            f"{figures['photos_with_proof']} of {figures['photos']} photos. {_distractors(figures['distractors'])}",
            "",
        ]
    if crawl is not None:
        figures = crawl["figures"]
        cpu, wall = figures["cpu_ms"], figures["wall_seconds"]
        share, success = 100 * figures["share_of_codec_ceiling"], 100 * figures["polite_success"]
        lines += [
            f"**Fetching {figures['images']:,} photos** (`{crawl['command']}`; nginx on the same machine, shrunk to "
            "256 pixels, start included):",
            "",
            "| | CPU-ms a photo | wall, s | memory, GB |",
            "| --- | ---: | ---: | ---: |",
            *(
                f"| {name} | {cpu[key]:.1f} | {wall[key]:.1f} | {figures['peak_gb'][key]:.2f} |"
                for key, name in (("img2dataset", "img2dataset 1.47"), ("crawl", "replaygen"))
            ),
            "",
            f"Without its start a photo costs {cpu['crawl_marginal']:.1f} CPU-ms, of which fetching and the codec "
            f"alone are {share:.0f} %; the screens cost {cpu['screens']:.1f} more. On a server that allows 50 requests "
            f"a second and answers 429 beyond, {success:.1f} % of the photos came with "
            f"{figures['polite_requests_per_image']:.3f} requests each (img2dataset with 3 retries: "
            f"{100 * figures['img2dataset_polite_success']:.1f} %).",
            "",
        ]
    return lines


QUALITY = {
    "plain": "argmax of the step's model, one look", "query": "class or background, four views and mirror images",
    "helper": "the same by the helper decoder", "both": "mean of the two", "grabcut": "helper, outlines drawn anew",
    "fixed_0.7": "helper, confidence of 0.7 or more", "area": "helper, area screen",
    "confidence": "helper, confidence screen",
    "agreement": "helper, agreement screen", "typical": "helper, typical screen", "split": "helper, two-groups screen",
    "adversarial": "helper, adversarial selection (RECALL+)", "default": "helper, all screens as they are",
    "refined": "helper, outlines drawn anew, all screens as they are",
    "strict": "the same, screens set hard",
}  # fmt: skip


def labels() -> list[str]:
    """How right labels are, what becomes of strangers, and what each part brings."""
    told = load("labels")
    if told is None:
        return []
    figures = told["figures"]
    if "quality" not in figures or "distractors" not in figures:
        return []
    settings = figures["quality"]["settings"]
    lines = [
        f"**Labels against the truth** (`{told['command']}`, {seeds(settings['plain']['pooled'])}; labelled "
        "train images that no step saw, treated as web photos; IoU in percent of what is kept, pooled over pixels and "
        "as mean over images, and that of plain argmax on the same images):",
        "",
        "| labels | kept, % | pooled | mean | plain argmax on the same |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, title in QUALITY.items():
        if name in settings:
            row = settings[name]
            kept = spread([100 * share for share in row["keep_rate"]])
            cells = [spread(row[key]) for key in ("pooled", "mean", "plain_on_the_same")]
            lines.append(f"| {title} | {kept} | " + " | ".join(cells) + " |")
    lines += ["", *_strangers(figures["distractors"]), ""]
    for name, title in (("voc", "cat, dog / horse / cow / sheep"), ("person", "the same with people in the base"),
                        ("camvid", "CamVid 6-1, partitioned, replay of 20 kept frames a class")):  # fmt: skip
        if figures.get(name):
            lines += _parts(figures[name], title)
    return lines


SCENARIOS = {
    "real_photos": "Real photographs, cat, dog / horse / cow / sheep, replay from web photos",
    "real_photos_person": "The same with people in the base, of whom there are no photos",
    "camvid": "Street scenes, CamVid 6-1 partitioned, RECALL's replay from generators fitted on each step",
    "digits": "Digit scenes, 5-1, replay from pictures of other handwriting",
}


def methods() -> list[str]:
    """The field's comparison, and what each part of ours brings."""
    told, lines = load("methods"), []
    if told is not None:
        lines += [
            "**Every method on the same data** (`make bench-methods`; trials on held-out training images, more of them "
            "for ours, are in `methods-tuning.json`; on photos ours is RECALL trained on photos that are chosen "
            "as RECALL+ chooses and seen from farther away; in street scenes it takes no replay and new classes "
            "weigh more, by which MiB and SDR, shown as published, gain as much: see what each part brings):",
            "",
        ]
        for scenario, title in SCENARIOS.items():
            if scenario in told["figures"]:
                lines += _field(told["figures"][scenario], title)
    ablation = load("methods-ablation")
    if ablation is not None:
        names = [name for name in SCENARIOS if name in ablation["figures"]]
        most = seeds(max((row["all"] for name in names for row in ablation["figures"][name].values()), key=len))
        lines += [f"**What each part brings** (`make bench-methods-ablation`, {most}), all-class mIoU:", ""]
        lines += ["| | " + " | ".join(SCENARIOS[name].partition(",")[0].lower() for name in names) + " |"]
        lines += ["| --- |" + " ---: |" * len(names)]
        for row in dict.fromkeys(row for name in names for row in ablation["figures"][name]):
            cells = [spread(ablation["figures"][name].get(row, {}).get("all", [])) for name in names]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _field(rows: dict[str, Any], title: str) -> list[str]:
    """One scenario's table."""
    most = max(len(row["all"]) for row in rows.values())
    columns = ("old", "new", "all", "forgetting", "seconds")
    lines = [f"{title} ({most} seed{'s' if most != 1 else ''}):", "", "| method | " + " | ".join(columns) + " |",
             "| --- |" + " ---: |" * len(columns)]  # fmt: skip
    for name, row in rows.items():
        cells = [spread([value for value in row[column] if value is not None]) for column in columns]
        fewer = f" ({seeds(row['all'])})" if len(row["all"]) != most else ""
        lines.append(f"| {name}{fewer} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _strangers(told: dict[str, Any]) -> list[str]:
    rows = []
    for name, row in told["rows"].items():
        share = ", ".join(
            f"{spread([100 * one for one in found['share']])} % of {cls}" for cls, found in row["in_buffer"].items()
        )
        rows.append(f"| {name} | {spread(row['clean'])} | {spread(row['planted'])} | {share} |")
    return [
        f"Goats, llamas and pigs planted as 30 % of the photos of {' and '.join(told['planted'])} "
        f"({seeds(next(iter(told['rows'].values()))['clean'])}):",
        "",
        "| method | mIoU, clean | mIoU, planted | of the photos trained on |",
        "| --- | ---: | ---: | --- |",
        *rows,
    ]


def _parts(told: dict[str, Any], title: str) -> list[str]:
    reference = told["reference"]
    lines = [
        f"Each part on and off, {title} ({seeds(told['seeds'])}):",
        "",
        f"| row | old | new | all | all, difference to {reference} | % of joint |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in told["rows"].items():
        cells = [spread(row[key]) for key in ("old", "new", "all", "to_reference", "share_of_joint")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _distractors(told: dict[str, dict[str, int]]) -> str:
    """How far planted photos of other animals came."""
    parts = [
        f"{row['planted']} among {row['offered']} for {name}: {row['door']} passed the door, {row['buffer']} of "
        f"{row['buffer_samples']} in the buffer are theirs"
        for name, row in told.items()
    ]
    return "Goats, llamas and pigs planted among the answers: " + "; ".join(parts) + "."


def scale() -> list[str]:
    """Clusters, a bucket and the schedule."""
    lines: list[str] = []
    told, played = load("scale"), load("schedule")
    if told is not None:
        figures = told["figures"]
        two, many = (figures[f"efficiency_{count}_workers"] for count in (2, 64))
        rate = figures["tasks_per_second"]
        details = figures["details"]
        cold, warm = (details["s3"]["requests_per_shard"][name]["all"] for name in ("cold", "warm"))
        kills = details["kills"]
        lines += [
            f"**Scale** (`{told['command']}`, 2 cores):",
            "",
            f"- Two Dask workers do what two bare processes do in {_share(two['crawl'])} (stages that wait) and "
            f"{_share(two['compute'])} (stages that compute) of the speed; 64 workers whose tasks sleep are busy "
            f"{100 * many['efficiency']:.0f} % of the time (bare `client.map`: {100 * many['bare']:.0f} %).",
            f"- 1,000,000 samples, {rate['tasks']:,} shards: {rate['ours']:.0f} tasks/s with every record durable "
            f"(`client.map` of a no-op: {rate['bare']:.0f}), planned in {rate['plan_seconds']:.0f} s; "
            f"{figures['bytes_per_shard_through_scheduler'] / 1000:.1f} kB a shard through the scheduler, whose memory "
            f"ends at {rate['scheduler_mb'][-1]:.0f} MB.",
            f"- A store in a bucket (moto's server): {cold} requests a shard when built, {warm} when run again; "
            f"{figures['s3_warm_recomputed']} shards made again.",
            f"- {figures['kills_survived']} of {sum(kills['kills'].values())} SIGKILLs of workers survived with the "
            f"bytes of a run in one process.",
        ]
    if played is not None:
        figures = played["figures"]
        lines.append(
            f"- The schedule, {figures['simulated_months']} simulated months with "
            f"{sum(figures['kills'].values())} kills: {figures['due']} due times, {figures['ticks']} ticks, "
            f"{figures['coalesced']} coalesced, {figures['ticks_double']} double, {figures['ticks_lost']} lost "
            f"(`{played['command']}`)."
        )
    return [*lines, ""] if lines else []


def _share(told: dict[str, Any]) -> str:
    return f"{100 * told['of_two_bare_processes']:.0f} %"


def engine() -> list[str]:
    """What running costs, and what is equal."""
    lines = []
    equality, overhead = load("equality"), load("overhead")
    if equality is not None:
        figures = equality["figures"]
        told = ", ".join(
            f"{name}: {'equal' if figures[name] else 'NOT equal'}" for name in ("inline_dask", "workers", "killed")
        )
        lines.append(f"- Bytes of every data set, label and weight (`{equality['command']}`): {told}.")
    if overhead is not None:
        figures = overhead["figures"]
        lines.append(
            f"- A finished recipe is re-run in {figures['warm_seconds']:.1f} s; time outside stages is "
            f"{100 * figures['inline_overhead']:.1f} % of a cold run inline, "
            f"{100 * figures['dask_overhead']:.1f} % on Dask; "
            f"150 classes x 10,000 images are planned in {figures['plan_seconds_1m5']:.1f} s (`{overhead['command']}`)."
        )
    return lines


def between(text: str, mark: str, lines: list[str]) -> str:
    """`text` with the part between `<!-- mark -->` and `<!-- /mark -->` replaced."""
    opening, closing = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, _, rest = text.partition(opening)
    after = rest.partition(closing)[2] if closing in rest else rest
    return f"{before}{opening}\n\n" + "\n".join(lines).strip() + f"\n\n{closing}{after}"


def main() -> None:
    """Rewrite README.md."""
    readme = ROOT / "README.md"
    lines = [
        *demo(),
        *generators(),
        *crawler(),
        *methods(),
        *labels(),
        *photos("real-photos", "Real photographs: cat, dog | horse | cow | sheep"),
        *photos("real-photos-person", "With people: person, cat, dog | horse | cow | sheep"),
        *scale(),
        *engine(),
    ]
    readme.write_text(between(readme.read_text(), "results", lines))


if __name__ == "__main__":
    main()
