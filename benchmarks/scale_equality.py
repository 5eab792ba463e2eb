"""The same recipe in one process, on a local cluster, and on a cluster by hand over TLS: the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scale_kills import RECIPE, _digests


def equality(folder: str) -> dict[str, Any]:
    """Tasks, and how many of them have other bytes than inline on 2 local workers, and on 2 over TLS."""
    import trustme

    from replaygen.plan import Recipe
    from replaygen.runs import run
    from replaygen.runs.clusters import remote_client, security_of
    from replaygen.store import Store
    from replaygen.testing.by_hand import cluster_by_hand

    here = Path(folder)
    path = here / "pipelines" / "equal.toml"
    path.parent.mkdir()
    path.write_text(RECIPE.format(data=here / "digits"))
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(here / "ca.pem")
    own.cert_chain_pems[0].write_to_path(here / "cert.pem")
    own.private_key_pem.write_to_path(here / "key.pem")
    tls = {f"run.tls.{name}": str(here / f"{name}.pem") for name in ("ca", "cert", "key")}

    def made(store: str, changes: dict[str, Any]) -> dict[str, str]:
        return _digests(run(Recipe.load(path, changes).plan(Store(here / store))).plan)

    inline = made("inline", {})
    local = made("local", {"run.workers": 2})
    with cluster_by_hand(here / "by-hand", certificates=here) as found:
        secured = Recipe.load(path, {"run.cluster": found.address, **tls})
        with remote_client(found.address, security=security_of(secured.table.run, here)) as client:
            client.wait_for_workers(2, timeout=300)
        by_hand = made("by-hand-store", {"run.cluster": found.address, **tls})
    return {
        "tasks": len(inline), "local_cluster_differs": sum(local[slot] != inline[slot] for slot in inline),
        "tls_by_hand_differs": sum(by_hand[slot] != inline[slot] for slot in inline),
    }  # fmt: skip
