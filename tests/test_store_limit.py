"""The read cache's limit: one limit for all who use the folder, and no pin that an eviction beside it does not see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_store_support import skip_syncs

from replaygen.store import fsops
from replaygen.store.fsops import Op
from replaygen.store.limit import CacheLimit

SIZE = 100
LIMIT = 100 * SIZE


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    for name in ("objects", "locks"):
        (tmp_path / name).mkdir()
    yield tmp_path
    fsops.trace = None


def added(root: Path, name: str, limit: CacheLimit) -> Path:
    """An object file that comes by way of one of the users."""
    path = root / "objects" / name
    path.write_bytes(bytes(SIZE))
    limit.grew(SIZE, keep=path)
    return path


def test_many_users_keep_to_one_limit(root: Path) -> None:
    """Each sees only what it adds itself; together they are never more than a little above it."""
    users = [CacheLimit(root, LIMIT) for _ in range(5)]
    for number in range(300):
        added(root, f"{number}", users[number % 5])
        held = sum(path.stat().st_size for path in (root / "objects").iterdir())
        assert held <= LIMIT + 5 * (LIMIT // 64 + SIZE)


def test_an_eviction_beside_a_first_pin_sees_it(root: Path) -> None:
    """Whenever it comes while the file of pins is made: that file is locked and written before anybody looks."""
    one, other = CacheLimit(root, 10 * SIZE), CacheLimit(root, 10 * SIZE)
    wanted = root / "objects" / "wanted"
    wanted.write_bytes(bytes(SIZE))
    seen = []

    def beside(op: Op, act: Callable[[], None]) -> None:
        skip_syncs(op, act)
        if op.path.suffix == ".pins" and op.kind not in seen:
            seen.append(op.kind)
            for number in range(15):
                added(root, f"{op.kind}-{number}", other)

    fsops.trace = beside
    one.pin(wanted)
    fsops.trace = skip_syncs
    assert seen == ["create", "append"]
    wanted.write_bytes(bytes(SIZE))
    for number in range(15):
        added(root, f"after-{number}", other)
    assert len(list((root / "objects").iterdir())) <= 10
    assert wanted.exists()
    one.unpin()
    for number in range(15):
        added(root, f"unpinned-{number}", other)
    assert not wanted.exists()
