"""Refs: names for what a recipe made, in refs/<recipe>/<name>.json; the roots of gc.

A damaged ref stays in place and counts as missing: moved away, gc would no longer know that it had named something.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replaygen.classes import slug
from replaygen.errors import StoreError
from replaygen.store import fsops
from replaygen.store.keys import canonical, is_digest
from replaygen.store.layout import Layout
from replaygen.store.locks import Locks
from replaygen.store.objects import discard, log, quarantine
from replaygen.store.records import read_all, seal, unseal


class Refs:
    """The refs of one open store."""

    def __init__(self, layout: Layout, locks: Locks) -> None:
        self._layout = layout
        self._locks = locks
        self._mirror = layout.mirror

    def path(self, recipe: str, name: str) -> Path:
        """Where a ref lies, whether or not it is there. Both parts pass `slug`."""
        return self._layout.refs / slug(recipe) / f"{slug(name)}.json"

    def write(self, recipe: str, name: str, data: dict[str, Any]) -> None:
        """Write a ref, durably and in one step, in place of the one of that name.

        Args:
            recipe, name: any texts.
            data: JSON values; `data["slots"]`, where given, maps slot names to keys: what gc keeps.

        Raises:
            StoreError: a slot that is no key, a value without canonical JSON, or it cannot be written.
        """
        check_slots(data, f"ref {recipe}/{name}")
        sealed = seal(b'"ref":%s' % canonical({"recipe": recipe, "name": name, "data": data}))
        path = self.path(recipe, name)
        with self._locks.writing(), fsops.explained("write a ref", path):
            if self._mirror is not None:
                self._mirror.put(path, sealed)
                return
            fsops.make_folder(path.parent)
            fsops.sync_folder(self._layout.refs)
            temp = fsops.write_temp(self._layout.tmp, [sealed])
            try:
                self._clear_damaged(path)
                fsops.rename(temp, path)
            except BaseException:
                discard(temp)
                raise
            fsops.sync_folder(path.parent)

    def read(self, recipe: str, name: str) -> dict[str, Any] | None:
        """A ref's data; None where there is none, or, with a warning, where it is damaged."""
        path = self.path(recipe, name)
        if self._mirror is not None:
            self._mirror.pull(path)
        try:
            found = self.look(path)
        except FileNotFoundError:
            return None
        except StoreError as error:
            log.warning("ref %s/%s: %s; run its recipe again to rewrite it (%s)", recipe, name, error.what, path)
            return None
        if found[:2] != (recipe, name):
            raise StoreError(
                f"ref {recipe}/{name} and ref {found[0]}/{found[1]} share a file name", where=str(path),
                hint="rename the recipe or the ref",
            )  # fmt: skip
        return found[2]

    def all(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(recipe, name, data) of every good ref; a damaged one is logged and left out."""
        for path in self.paths():
            try:
                yield self.look(path)
            except StoreError as error:
                log.warning("%s (%s)", error.what, path)
            except FileNotFoundError:
                continue

    def paths(self) -> list[Path]:
        """Every file below refs/, odd ones too."""
        found = []
        if self._mirror is not None:
            self._mirror.pull_folder(self._layout.refs)
        for folder, _, names in os.walk(self._layout.refs):
            found += [Path(folder, name) for name in names]
        return sorted(found)

    def look(self, path: Path) -> tuple[str, str, dict[str, Any]]:
        """(recipe, name, data) of the ref in a file; StoreError where it is damaged or not at its place."""
        try:
            content = json.loads(b"{%s}" % unseal("ref", read_all(str(path))))["ref"]
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"ref is damaged: it cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, RecursionError):
            raise StoreError("ref is damaged: not a ref") from None
        if not isinstance(content, dict):
            raise StoreError("ref is damaged: not a ref")
        recipe, name, data = content.get("recipe"), content.get("name"), content.get("data")
        if len(content) != 3 or not isinstance(recipe, str) or not isinstance(name, str) or not isinstance(data, dict):
            raise StoreError("ref is damaged: it needs recipe, name and data")
        if self.path(recipe, name) != path:
            raise StoreError(f"ref is damaged: it is ref {json.dumps(recipe)}/{json.dumps(name)} at another's place")
        try:
            check_slots(data, "ref")
        except StoreError as error:
            raise StoreError(f"ref is damaged: {error.what}") from None
        return recipe, name, data

    def _clear_damaged(self, path: Path) -> None:
        """Keep a damaged ref in quarantine before a new one takes its place."""
        try:
            self.look(path)
        except FileNotFoundError:
            return
        except StoreError as error:
            quarantine(self._layout, path, "ref", error.what, readonly=False)


def check_slots(data: dict[str, Any], where: str) -> None:
    """StoreError where `data["slots"]` is there and does not map names to keys."""
    slots = data.get("slots", {})
    if not isinstance(slots, dict):
        raise StoreError(f"{where} has slots of type {type(slots).__name__}", hint="slots map names to keys")
    for slot, key in slots.items():
        if not is_digest(key):
            raise StoreError(f"{where} gives slot {slot!r} the key {str(key)[:80]!r}", hint="a key is 64 hex digits")
