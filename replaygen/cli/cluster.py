"""The commands about Dask clusters: the job script of a batch system, and certificates."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from replaygen.cli.options import Cluster, Json, RecipeName, Set, Workers, load_recipe

app = typer.Typer(no_args_is_help=True, help="Job scripts and certificates of Dask clusters.")


@app.command()
def script(
    recipe: RecipeName,
    changes: Set = None,
    workers: Workers = None,
    cluster: Cluster = None,
    as_json: Json = False,
) -> None:
    """Print the script that would be submitted for each job of a batch system; nothing is submitted."""
    from replaygen.cli.app import how
    from replaygen.errors import RecipeError
    from replaygen.plan.tables import QUEUES
    from replaygen.runs.jobs import job_script

    found = load_recipe(recipe, changes, how(workers, cluster))
    table = found.table.run
    if table.cluster not in QUEUES:
        raise RecipeError(
            f"cluster = {table.cluster!r} submits no jobs", where=f"{found.path}: run",
            hint=f"cluster = one of {', '.join(QUEUES)}",
        )  # fmt: skip
    text = job_script(table, found.workspace, threads=found.table.threads)
    if as_json:
        print(json.dumps({"cluster": table.cluster, "script": text}))
        return
    print(text)
    print("the scheduler's address and the names of temporary certificates are examples", file=sys.stderr)


@app.command()
def certificates(
    folder: Annotated[Path, typer.Argument(help="where to write ca.pem, cert.pem and key.pem")],
    days: Annotated[int, typer.Option(min=1, help="how long they are valid")] = 365,
    as_json: Json = False,
) -> None:
    """Make certificates for one Dask cluster: copy the three files to its scheduler, its workers and its users."""
    from replaygen.runs.certificates import make_certificates

    paths = [str(path) for path in make_certificates(folder, days)]
    print(json.dumps({"files": paths}) if as_json else "\n".join(f"wrote {path}" for path in paths))
