"""The latent example: prompts and sentences, and two steps of each stage of its training with what is packed then."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from engine.bundle.vocabulary import TextSpec, Vocabulary
from engine.text import TextEncoder

FOLDER = Path(__file__).parents[2] / "examples" / "avatars-latent"


def script(name: str) -> ModuleType:
    """A module of the example, which is run by path and is part of no package."""
    pytest.importorskip("python_avatars", reason="the package python-avatars is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def prompts() -> ModuleType:
    return script("prompts")


@pytest.mark.parametrize("prompt", ["Long red hair, glasses", "long  red hair,glasses"])
def test_words_are_tokens_whatever_stands_between_them(prompts: ModuleType, prompt: str) -> None:
    tokens = prompts.encode(prompt)
    assert (tokens.dtype, tokens.shape) == (np.int64, (prompts.LENGTH,))
    assert prompts.decode(tokens) == "long red hair, glasses"


def test_what_is_no_word_is_unknown_and_what_is_too_long_refused(prompts: ModuleType) -> None:
    begin, end = prompts.BEGIN, prompts.END
    assert prompts.encode("zebra hair").tolist()[:4] == [begin, prompts.UNKNOWN, prompts.VOCABULARY["hair"], end]
    assert prompts.encode("").tolist()[:3] == [begin, end, prompts.PAD]
    with pytest.raises(ValueError, match="has 31 words and commas, expected at most 30"):
        prompts.encode("hair " * 31)


def test_a_bundle_with_the_vocabulary_makes_the_same_tokens(prompts: ModuleType) -> None:
    spec = TextSpec("vocab.txt", 1, "", "tokens", "wordpiece", True, "[CLS]", "[SEP]", "[PAD]", "[UNK]")
    encoder = TextEncoder(Vocabulary(spec, prompts.VOCABULARY, prompts.LENGTH))
    texts = ["Long red hair,glasses", "", "afro, zebra, no beard , dark skin", "hair"]
    np.testing.assert_array_equal(encoder.encode(texts), [prompts.encode(text) for text in texts])


def test_prompts_are_hidden_as_nulls_or_word_by_word(prompts: ModuleType) -> None:
    train, generator = script("train"), torch.Generator().manual_seed(0)
    tokens = torch.from_numpy(np.stack([prompts.encode("long red hair, glasses, smiling")] * 4000))
    hidden = train.hide(tokens, 0.25, generator)
    null = (hidden == torch.from_numpy(prompts.encode(""))).all(1)
    unknown = (hidden[~null] == prompts.UNKNOWN).float().mean(0)
    assert 0.22 < null.float().mean() < 0.28
    assert (unknown[1:8] > 0.01).all()
    assert (unknown[0], unknown[8:].max()) == (0, 0), "beginning, end and padding stay"


def test_what_a_sentence_tells_of_a_face(prompts: ModuleType) -> None:
    face = {"hair": "long", "glasses": "none", "beard": "none", "skin": "dark"}
    assert prompts.told(face, "long red hair, no glasses") == {"hair", "glasses"}
    assert prompts.told(face, "red hair, dark skin, no beard") == {"beard", "skin"}


def test_sentences_are_drawn_from_the_seed_in_words_of_the_vocabulary(prompts: ModuleType) -> None:
    dataset = script("dataset")
    rows = np.random.default_rng(0).integers(0, [len(names) for names in dataset.faces.ATTRIBUTES.values()], (2000, 10))
    said = [dataset.sentence(row, 5, index) for index, row in enumerate(rows)]
    assert said[7] == dataset.sentence(rows[7], 5, 7)
    used = {int(token) for sentence in said for token in prompts.encode(sentence)}
    special = {prompts.VOCABULARY[name] for name in ("[UNK]", "[MASK]")}
    assert used == set(range(len(prompts.VOCABULARY))) - special
    count = [sentence.count(",") + 1 for sentence in said]
    assert (min(count), max(count)) == (1, 9)


def test_the_networks_fit_into_the_file_that_is_shipped() -> None:
    train = script("train")
    with torch.device("meta"):
        networks = (train.TextDiffusion(), train.FirstStage(train.STAGE))
    assert sum(weight.numel() for network in networks for weight in network.parameters()) * 2 < 23_000_000


def test_two_steps_of_each_stage_are_packed_under_the_keys_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)  # tiny layers: on busy cores the threads would wait for each other at every one
    train, dataset = script("train"), script("dataset")
    monkeypatch.setattr(train, "UNET", dataclasses.replace(train.UNET, model_channels=32, channel_mult=(1,)))
    monkeypatch.setattr(train, "TEXT", dataclasses.replace(train.TEXT, layers=1))
    rows = np.zeros((4, 10), dtype=np.int16)
    images = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    tokens = np.stack([train.prompts.encode("long red hair")] * 4)
    dataset.faces.save(tmp_path / "train.npz", images, rows, 0, tokens=tokens)
    for fit in (train.train_autoencoder, train.train_diffusion):
        fit(tmp_path, tmp_path, train.Recipe(images=4, batch=2, lr=1e-3, weighting="v"))
    path = train.pack(tmp_path, tmp_path / "to")
    state = torch.load(path, weights_only=True)["state_dict"]
    trained = torch.load(tmp_path / "diffuse.state", weights_only=True)
    assert trained["step"] == 2
    for prefix, module in (
        ("model.diffusion_model.", train.OpenAIUNet(train.UNET)),
        ("first_stage_model.", train.FirstStage(train.STAGE)),
        ("cond_stage_model.", train.TokenEncoder(train.TEXT)),
    ):
        module.load_state_dict({key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)})
    weight = trained["ema"]["unet.out.2.weight"]
    assert weight.abs().max() > 0
    assert torch.equal(state["model.diffusion_model.out.2.weight"], weight.half())
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    assert state["alphas_cumprod"][-1] == pytest.approx(np.prod(1 - betas), rel=1e-5)
    assert "    parameterization: v\n" in path.with_suffix(".yaml").read_text()
    assert (tmp_path / "to" / "vocab.txt").read_text() == (FOLDER / "vocab.txt").read_text()
    monkeypatch.setattr(train, "KEPT", tmp_path / "kept.safetensors")
    trained, _ = train.load_autoencoder(tmp_path)
    assert train.keep(tmp_path) == tmp_path / "kept.safetensors"
    taken, steps = train.load_autoencoder(tmp_path / "elsewhere")
    assert steps == 0
    assert all(torch.equal(value.half().float(), taken.state_dict()[key]) for key, value in trained.state_dict().items())
