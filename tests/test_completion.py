"""Completion, as the shells themselves evaluate it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TRAINING, Workspace

ZSH = """
autoload -Uz compinit; compinit -u -D
_arguments() {{ print -r -- "$*" }}
_files() {{ print FILES }}
{source}
words=({words}); CURRENT=$#words; _replaygen_completion
"""
FISH = """
{source}
complete -C "{line}"
"""
BASH = """
{source}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); _replaygen_completion replaygen
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
OFFERED = {
    "replaygen ": ("recipes", "cache"), "replaygen plan ti": ("tiny",), "replaygen recipes cp rec": ("recall_plus",),
    "replaygen train tiny --method ": ("finetune", "recall"), "replaygen run tiny --work": ("--workers",),
}  # fmt: skip


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_in_a_shell(shell: str, workspace: Workspace, tmp_path: Path) -> None:
    """The shell itself evaluates what is offered: commands, recipes, rows, options; a hostile name runs nothing."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    workspace.recipe(TRAINING, "tiny")
    hostile = [
        "$(touch HACKED)",
        "`touch HACKED`",
        'ti"; touch HACKED; "',
        "ti'; touch HACKED; '",
        "ti$IFS;touch HACKED",
    ]
    for name in hostile:
        (workspace.root / "pipelines" / f"{name}.toml").write_text("")
    command = tmp_path / "bin" / "replaygen"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m replaygen "$@"\n')
    command.chmod(0o755)
    told = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    source = subprocess.run(
        ["replaygen"],
        env={**told, "_REPLAYGEN_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    try:
        for line, offered in OFFERED.items():
            words = " ".join(f'"{word}"' for word in line.split(" "))
            text = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell].format(source=source, words=words, line=line)
            (tmp_path / "script").write_text(text)
            flags = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
            done = subprocess.run(
                [program, *flags, str(tmp_path / "script")],
                cwd=workspace.root,
                env=told,
                capture_output=True,
                text=True,
            )
            assert set(offered) <= set(re.findall(r"[\w-]+", done.stdout)), f"{line!r}: {done.stdout} {done.stderr}"
            assert "touch" not in done.stdout
        assert not (workspace.root / "HACKED").exists()
    finally:
        for name in hostile:
            (workspace.root / "pipelines" / f"{name}.toml").unlink()
