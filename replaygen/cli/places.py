"""Commands about places: a new workspace, the recipes in reach, and what is installed here."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replaygen.cli import completing
from replaygen.cli.options import Json

if TYPE_CHECKING:
    from replaygen.inpainters.lama_env import Environment

recipes = typer.Typer(no_args_is_help=True, help="List recipes and trainers, copy them into this workspace.")


def init(folder: Annotated[Path, typer.Argument(help="the new workspace")] = Path(), as_json: Json = False) -> None:
    """Make a workspace: a folder with pipelines/, trainers/ and cache/."""
    from replaygen.plan.workspace import shipped

    made = []
    for name in ("pipelines", "trainers", "cache"):
        if not (folder / name).is_dir():
            (folder / name).mkdir(parents=True)
            made.append(name)
    for name in ("README.md", ".gitignore"):
        source, target = shipped() / "cache" / name, folder / "cache" / name
        if source.is_file() and not target.exists():
            shutil.copyfile(source, target)
    if as_json:
        print(json.dumps({"workspace": str(folder.resolve()), "made": made}))
    else:
        print(f"workspace {folder.resolve()}: " + (f"made {', '.join(made)}" if made else "everything is there"))
        into = "" if folder.resolve() == Path.cwd() else f"`cd {shlex.quote(str(folder))}`, "
        print(
            f"next: {into}`replaygen demo` to see it at work; `replaygen recipes cp digits my.toml` for one of your own"
        )


@recipes.command("ls")
def list_all(as_json: Json = False) -> None:
    """The recipes and trainers in reach; this workspace's own win over installed ones."""
    from replaygen.plan.workspace import list_recipes, list_trainers
    from replaygen.report.text import plain

    found = [(path, _title(path)) for path in list_recipes()]
    trainers = list_trainers(Path.cwd())
    if as_json:
        rows = [{"name": path.stem, "path": str(path), "title": title} for path, title in found]
        print(json.dumps({"recipes": rows, "trainers": [{"name": path.stem, "path": str(path)} for path in trainers]}))
        return
    width = max((len(path.stem) for path in (*(path for path, _ in found), *trainers)), default=0)
    for path, title in found:
        print(plain(f"recipe   {path.stem:<{width}}  {title}"))
    for path in trainers:
        print(plain(f"trainer  {path.stem:<{width}}  {path}"))


def _title(path: Path) -> str:
    import tomllib

    try:
        return str(tomllib.loads(path.read_text(encoding="utf-8")).get("title", ""))
    except (OSError, ValueError):
        return "(cannot be read)"


@recipes.command("cp")
def copy(
    name: Annotated[
        str, typer.Argument(help="a recipe or trainer by name", autocompletion=completing.recipes_and_trainers)
    ],
    target: Annotated[Path, typer.Argument(help="the new file; a bare name goes to pipelines/ or trainers/")],
    as_json: Json = False,
) -> None:
    """Copy a recipe or a trainer into this workspace, to change it."""
    from replaygen.errors import RecipeError
    from replaygen.plan.workspace import find_recipe, find_trainer

    source = find_trainer(name, Path.cwd()) if target.suffix == ".py" else find_recipe(name)
    if target.parent == Path():
        target = Path("trainers" if target.suffix == ".py" else "pipelines") / target
    if target.exists():
        raise RecipeError("the target exists", where=str(target), hint="choose another name; nothing was overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    text = source.read_text(encoding="utf-8")
    if target.suffix == ".toml":
        text = text.replace(f'name = "{source.stem}"', f'name = "{target.stem}"', 1)
    target.write_text(text, encoding="utf-8")
    print(json.dumps({"source": str(source), "target": str(target)}) if as_json else f"{source} -> {target}")


PACKAGES = {
    "torch": "train", "safetensors": "train", "transformers": "backbones", "distributed": "dask",
    "jinja2": "report", "matplotlib": "report", "sklearn": "digits",
    "pytorch_pretrained_biggan": "biggan", "diffusers": "diffusion",
    "flickrapi": "crawl", "urllib3": "crawl", "pyrate_limiter": "crawl", "protego": "crawl", "simplejpeg": "crawl",
    "cv2": "inpaint crawl", "imagehash": "crawl", "pyarrow": "crawl",
    "dask_jobqueue": "jobqueue", "cryptography": "jobqueue", "bokeh": "dashboard", "s3fs": "s3",
    "apscheduler": "schedule",
}  # fmt: skip
"""The extras that bring a package, by the name under which it is imported."""

DEMO = ("train", "dask", "report", "digits", "biggan")
"""The extras that the demo is made of."""


def doctor(
    install: Annotated[
        str | None,
        typer.Option(
            "--install",
            metavar="NAME",
            help="make the environment of: lama (an inpainter)",
            autocompletion=completing.words("lama"),
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="with --install: share no package with this environment")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what is installed, what is missing for what, and whether there is a GPU."""
    if install is not None or full:
        _install(install, full=full, as_json=as_json)
        return
    import os
    import platform
    from importlib.util import find_spec

    from replaygen.inpainters.lama_env import HINT, environment

    rows = {name: find_spec(name) is not None for name in PACKAGES}
    device = "none"
    if rows["torch"]:
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu only"
    lama = environment()
    told = {
        "python": platform.python_version(), "packages": rows, "device": device, "cores": os.cpu_count(),
        "REPLAYGEN_DATA": os.environ.get("REPLAYGEN_DATA"),
        "lama": lama.as_json(),
        "flickr_key": bool(os.environ.get("FLICKR_API_KEY") and os.environ.get("FLICKR_API_SECRET")),
    }  # fmt: skip
    if as_json:
        print(json.dumps(told))
        return
    print(f"python {told['python']}, {told['cores']} cores, device: {device}")
    for name, there in rows.items():
        ways = " or ".join(f"'replaygen[{extra}]'" for extra in PACKAGES[name].split())
        print(f"  {name:<26}" + ("installed" if there else f"missing: pip install {ways}"))
    print(
        f"  REPLAYGEN_DATA             {told['REPLAYGEN_DATA'] or 'not set (only recipes on real photographs need it)'}"
    )
    print(f"  lama-cleaner               {_told(lama) if lama.ready else f'{lama.why} (erases with LaMa): {HINT}'}")
    for name in ("REPLAYGEN_FLICKR_URL", "REPLAYGEN_ALLOW_HOSTS", "REPLAYGEN_CONTACT", "REPLAYGEN_STATE"):
        if os.environ.get(name):
            print(f"  {name:<26} {os.environ[name]}")
    print(f"  FLICKR_API_KEY, _SECRET    {'set' if told['flickr_key'] else 'not set (only Flickr needs them)'}")


def _install(name: str | None, *, full: bool, as_json: bool) -> None:
    from replaygen.errors import RecipeError
    from replaygen.inpainters.lama_env import install

    if name != "lama":
        what = "--full says how to install" if name is None else f"doctor installs no {name!r}"
        raise RecipeError(what, hint="replaygen doctor --install lama [--full]")
    made = install(full=full, say=lambda line: print(line, file=sys.stderr))
    print(json.dumps(made.as_json()) if as_json else f"lama-cleaner               {_told(made)}")


def _told(lama: Environment) -> str:
    versions = dict(lama.versions)
    parts = ", ".join(f"{name} {versions[name]}" for name in ("lama-cleaner", "torch") if name in versions)
    seen = "; sees packages of another environment" if lama.shared else ""
    changed = f"; changed since it was made: {', '.join(lama.changed)}" if lama.changed else ""
    return f"{parts} in {lama.path}{seen}{changed}"
