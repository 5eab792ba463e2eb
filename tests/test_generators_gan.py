"""The fitted GAN: it learns, repeats itself byte for byte, survives a kill, goes on, and is a BigGAN like others."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_pretrained_biggan import BigGAN, BigGANConfig
from safetensors.torch import load, save

from replaygen.errors import DataError, ModelError
from replaygen.generators.biggan import open_biggan
from replaygen.generators.critic import augment
from replaygen.generators.draws import Draw, truncated_normals
from replaygen.generators.gan import fit_gan
from replaygen.generators.pictures import Fitted, Pictures, Seen, around
from replaygen.generators.specs import BigGanSpec, FitSpec
from replaygen.learn.fitting import Event

SPEC = FitSpec(size=16, width=8, critic_width=8, latent=8, iterations=20, batch=8, snapshots=2, average=0.9)
LEARNS = SPEC.model_copy(update={"iterations": 220, "lr": 2e-3, "critic_lr": 2e-3, "light": 0.0, "average": 0.95})


def pictures(classes: tuple[str, ...] = ("red", "blue"), spec: FitSpec = SPEC) -> Pictures:
    """Flat red or blue squares on black, at random places."""
    random = np.random.default_rng(5)
    seen = []
    for label in range(len(classes)):
        for _ in range(20):
            top, left = random.integers(0, 10, 2)
            where = np.zeros((20, 20), bool)
            where[top : top + 10, left : left + 10] = True
            image = np.zeros((20, 20, 3), np.uint8)
            image[where, 0 if label % 2 == 0 else 2] = 220
            seen.append(Seen(label, image, where))
    return Pictures(classes, seen, spec)


@pytest.fixture(scope="module")
def tiny() -> Fitted:
    """A fit of a few iterations, never interrupted."""
    return fit_gan(pictures(), SPEC, seed=3)


def folder_of(made: Fitted, folder: Path) -> Path:
    """The fit as a folder of weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(made.config))
    (folder / "model.safetensors").write_bytes(made.tensors)
    return folder


def test_it_learns_which_class_is_red(tmp_path: Path) -> None:
    made = fit_gan(pictures(spec=LEARNS), LEARNS, seed=1)
    assert [iteration for iteration, _ in made.snapshots] == [110, 220]
    drawn = open_biggan(folder_of(made, tmp_path), BigGanSpec(batch=8), "cpu").draw([Draw(s, s % 2) for s in range(16)])
    means = drawn.mean((1, 2))
    red = means[0::2, 0] - means[0::2, 2]
    blue = means[1::2, 2] - means[1::2, 0]
    assert red.mean() > 0.1
    assert blue.mean() > 0.1


def test_the_package_draws_the_same_from_it(tiny: Fitted, tmp_path: Path) -> None:
    """Loaded with the package's own classes, the weights give the images that our drawing code gives."""
    for truncation in (1.0, 0.5):
        ours = open_biggan(folder_of(tiny, tmp_path), BigGanSpec(batch=2, truncation=truncation), "cpu")
        draws = [Draw(seed, seed % 2) for seed in range(5)]
        package = BigGAN(BigGANConfig.from_dict(tiny.config)).eval()
        package.load_state_dict(load(tiny.tensors))
        z = torch.from_numpy(np.stack([truncation * truncated_normals(draw.seed, 8) for draw in draws]))
        with torch.no_grad():
            told = package(z, torch.eye(2)[[draw.label for draw in draws]], truncation)
        assert np.allclose(ours.draw(draws), (told.permute(0, 2, 3, 1).numpy() + 1) / 2, atol=1e-4)


def test_equal_fits_are_equal_bytes(tiny: Fitted) -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state()
    again = fit_gan(pictures(), SPEC, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert (again.tensors, again.critic, again.losses) == (tiny.tensors, tiny.critic, tiny.losses)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(again.snapshots, tiny.snapshots, strict=True))
    assert fit_gan(pictures(), SPEC, seed=4).tensors != tiny.tensors


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_generators_gan as t
def tell(event):
    print(event["event"], event.get("iteration"), flush=True)
    time.sleep(0.05)
t.fit_gan(t.pictures(), t.SPEC, seed=3, partial=Path(sys.argv[1]), log=tell, checkpoint_seconds=0.0)
"""


def test_a_killed_fit_ends_with_the_same_bytes(tiny: Fitted, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.split() == ["checkpoint", "13"]:  # between the two snapshots
            child.send_signal(signal.SIGKILL)
            break
    child.wait()
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    events: list[Event] = []
    made = fit_gan(pictures(), SPEC, seed=3, partial=tmp_path, log=events.append)
    resumed = [event["iteration"] for event in events if event["event"] == "resumed"]
    assert len(resumed) == 1
    assert 12 <= resumed[0] < 20
    assert (made.tensors, made.critic, made.losses) == (tiny.tensors, tiny.critic, tiny.losses)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(made.snapshots, tiny.snapshots, strict=True))


def test_the_next_step_goes_on(tiny: Fitted) -> None:
    """Classes of the same name keep their embedding, new ones begin at the mean; another architecture is refused."""
    spec = SPEC.model_copy(update={"warm_iterations": 1, "lr": 1e-12, "critic_lr": 1e-12})
    start = (tiny.tensors, tiny.config, tiny.critic)
    made = fit_gan(pictures(("green", "red")), spec, seed=3, start=start)
    assert made.losses[-1]["iteration"] == 1
    before, after = load(tiny.tensors)["embeddings.weight"], load(made.tensors)["embeddings.weight"]
    assert torch.allclose(after[:, 1], before[:, 0], atol=1e-6)
    assert torch.allclose(after[:, 0], before.mean(1), atol=1e-6)
    with pytest.raises(ModelError, match="channel_width"):
        fit_gan(pictures(), spec.model_copy(update={"width": 12}), seed=3, start=start)
    broken = {name: tensor for name, tensor in load(tiny.tensors).items() if not name.endswith("conv_0.bias")}
    with pytest.raises(ModelError, match="not those of its architecture"):
        fit_gan(pictures(), spec, seed=3, start=(save(broken), tiny.config, tiny.critic))


def test_a_loss_that_blows_up_is_said_so() -> None:
    spec = SPEC.model_copy(update={"lr": 1e30, "critic_lr": 1e30, "bf16": False})
    with pytest.raises(ModelError, match="became"):
        fit_gan(pictures(), spec, seed=3)


def test_pictures_are_balanced_focused_and_checked() -> None:
    spec = SPEC.model_copy(update={"focus": 1.0, "context": 1.0})
    close = pictures(spec=spec)
    images, labels = close.batch(np.random.default_rng(0), 200)
    assert images.shape == (200, 3, 16, 16)
    assert 60 < int((labels == 0).sum()) < 140
    assert float(images[labels == 0][:, 0].mean()) > 0.7  # nothing but the object is in the crop
    assert close.digest != pictures().digest
    image = np.zeros((30, 50, 3), np.uint8)
    where = np.zeros((30, 50), bool)
    where[0:4, 46:50] = True
    assert around(image, where, 2.0).shape == (8, 8, 3)
    assert around(image, np.ones((30, 50), bool), 3.0).shape == (30, 30, 3)
    with pytest.raises(DataError, match="'b' has 1 images"):
        Pictures(["a", "b"], [Seen(0, image), Seen(0, image), Seen(1, image)], SPEC)


def test_what_the_critic_sees_passes_gradients() -> None:
    """Translation moves pixels and repeats edges; brightness and contrast keep a flat image flat."""
    torch.manual_seed(0)
    flat = torch.full((4, 3, 16, 16), 0.25, requires_grad=True)
    moved = augment(flat, 0.25, 0.2)
    assert torch.allclose(moved.std((2, 3)), torch.zeros(4, 3), atol=1e-6)
    moved.sum().backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()
    image = torch.rand(2, 3, 16, 16)
    assert torch.equal(augment(image, 0.0, 0.0), image)
