"""A small text encoder that knows in which order words stand, and one that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

from pipelines.errors import ModelError, RequestError
from tests.training.small import stage
from tests.training.test_stages import Place
from training.bases import of_folder
from training.config import TrainingRecipe
from training.methods.span_loss import PAD, SpanLoss, see_order
from training.methods.text_encoder import _seen
from training.recipes import resolve


@pytest.fixture
def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 40,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": PAD,
        "decoder_start_token_id": PAD,
    }
    return T5ForConditionalGeneration(T5Config(**shape)).eval()


def _bias(t5: T5ForConditionalGeneration) -> Tensor:
    blocks: Any = t5.encoder.block
    weight: Tensor = blocks[0].layer[0].SelfAttention.relative_attention_bias.weight
    return weight


def _batch() -> dict[str, Any]:
    whole = torch.tensor([[12, 20, 13, 21, 14, 1], [15, 22, 1, PAD, PAD, PAD]])
    return {
        "ids": ["one", "two"],
        "tokens": whole.clone(),
        "whole": whole,
        "labels": torch.tensor([[20, 1], [22, 1]]),
    }


def _feature(t5: T5ForConditionalGeneration, tokens: list[int], token: int) -> Tensor:
    with torch.no_grad():
        features = t5.encoder(input_ids=torch.tensor([tokens])).last_hidden_state[0]
    return features[tokens.index(token)]


def test_the_place_of_a_word_shows_in_its_feature(t5: T5ForConditionalGeneration) -> None:
    first, second = [20, 12, 21, 13, 1], [21, 12, 20, 13, 1]

    def apart() -> float:
        here, there = _feature(t5, first, 20), _feature(t5, second, 20)
        return float((here - there).norm() / here.norm())

    blind = apart()
    see_order(t5)
    seeing = apart()
    assert seeing > 3 * blind
    before = _bias(t5).clone()
    see_order(t5)
    assert torch.equal(before, _bias(t5)), "a look that is there is not strengthened again"


def test_neighbours_are_those_of_the_caption(t5: T5ForConditionalGeneration) -> None:
    net = SpanLoss(t5, neighbours=0.5)
    batch = _batch()
    losses = net(batch, 0, None)
    whole = batch["whole"]
    with torch.no_grad():
        mask = (whole != PAD).long()
        features = t5.encoder(input_ids=whole, attention_mask=mask).last_hidden_state
    for row in range(2):
        length = int(mask[row].sum())
        means = []
        for offset, head in zip((-3, -2, -1, 1, 2, 3), net.towards, strict=True):
            each = [
                nn.functional.cross_entropy(
                    head(features[row, place]) @ t5.shared.weight.T / 32**0.5,
                    whole[row, place + offset],
                )
                for place in range(length)
                if 0 <= place + offset < length
            ]
            means.append(torch.stack(each).mean() if each else torch.tensor(0.0))
        torch.testing.assert_close(losses["neighbours"][row], torch.stack(means).mean())
    torch.testing.assert_close(losses["loss"], losses["spans"] + 0.5 * losses["neighbours"])


@torch.no_grad()
def test_features_are_held_to_those_before(t5: T5ForConditionalGeneration) -> None:
    before = _encoder(t5)
    net = SpanLoss(t5, keep=2.0, before=before)
    assert float(net(_batch(), 0, None)["keep"].max()) == 0.0
    with torch.no_grad():
        t5.encoder.final_layer_norm.weight.mul_(1.1)
    losses = net(_batch(), 0, None)
    assert float(losses["keep"].min()) > 0
    torch.testing.assert_close(losses["loss"], losses["spans"] + 2.0 * losses["keep"])
    assert all(not p.requires_grad for p in before.parameters())


@torch.no_grad()
def test_what_is_kept_to_has_no_dropout(t5: T5ForConditionalGeneration) -> None:
    """Validation switches back to training mode; only a run that validated would have noise."""
    net = SpanLoss(t5, keep=1.0, before=_encoder(t5, dropout_rate=0.5))
    net.train()
    assert float(net(_batch(), 0, None)["keep"].max()) == 0.0


@torch.no_grad()
@pytest.mark.parametrize("tokens", [[1], [20, 1], [20, 21, 1]])
def test_short_captions_have_few_neighbours(
    t5: T5ForConditionalGeneration, tokens: list[int]
) -> None:
    whole = torch.tensor([tokens])
    batch = {"ids": ["x"], "tokens": whole, "whole": whole, "labels": torch.tensor([[20, 1]])}
    losses = SpanLoss(t5, neighbours=1.0)(batch, 0, None)
    assert bool(torch.isfinite(losses["loss"]).all())
    assert (float(losses["neighbours"]) == 0.0) == (len(tokens) == 1)


def _encoder(t5: T5ForConditionalGeneration, **changes: Any) -> T5EncoderModel:
    shape = t5.config.to_dict() | {"is_encoder_decoder": False} | changes
    encoder = T5EncoderModel(T5Config(**shape))
    encoder.encoder.load_state_dict(t5.encoder.state_dict())
    return encoder


def _recipe(**more: Any) -> TrainingRecipe:
    shape = {"vocabulary": 120, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1}
    first = stage("text", "text-encoder", net=shape | {"num_heads": 2})
    second = {"base": {"text": "stage:text"}, "objective": {"keep": 1.0}}
    stages = [first, stage("order", "text-encoder", **(second | more))]
    return resolve({"title": "Words", "stage": stages}, name="words")


def _features(result: Path) -> Tensor:
    encoder = T5EncoderModel.from_pretrained(result / "text_encoder").float().eval()
    with torch.no_grad():
        return encoder(input_ids=torch.tensor([[20, 30, 40, 1]])).last_hidden_state


def test_an_encoder_goes_on(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert place.walk(_recipe(optimizer={"lr": 1e-5})).reason == "finished"
    old, new = (place.run / name / "result" for name in ("01-text", "02-order"))
    for file in ("tokenizer/tokenizer.json", "text_encoder/config.json"):
        assert (old / file).read_bytes() == (new / file).read_bytes()
    # What it has seen goes along; the second stage learned from the same captions.
    words = [
        (result / "tokenizer" / "words.txt").read_text("utf-8").split() for result in (old, new)
    ]
    assert words[0] == words[1] == sorted(set(words[0]))
    assert {"red", "blue"} & set(words[0])
    (new / "tokenizer" / "words.txt").unlink()
    assert _seen(["a cat"], of_folder(new)) == ""
    (new / "tokenizer" / "words.txt").write_text("dog\n")
    assert _seen(["a cat"], of_folder(new)) == "a\ncat\ndog\n"
    assert _seen(["a cat"], None) == "a\ncat\n"
    apart = (_features(new) - _features(old)).norm() / _features(old).norm()
    assert 0 < float(apart) < 0.01


def test_an_encoder_that_goes_on_resumes_exactly(tmp_path: Path) -> None:
    recipe = _recipe(objective={"neighbours": 0.5, "keep": 1.0})
    straight, cut = Place(tmp_path / "straight"), Place(tmp_path / "cut")
    assert straight.walk(recipe).reason == "finished"
    assert cut.walk(recipe, only="text").reason == "finished"
    cut.seen.clear()
    assert cut.walk(recipe, should_stop=cut.trains).reason == "stopped"
    assert cut.walk(recipe).reason == "finished"
    results = [p.run / "02-order" / "result" / "text_encoder" for p in (straight, cut)]
    weights = [(r / "model.safetensors").read_bytes() for r in results]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"base": {}}, "needs a base.text"),
        ({"net": {"d_model": 64}}, "leave net out"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_starts(
    more: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        _recipe(**more)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"<extra_id_3>"', '"<other>"', "has no <extra_id_3>"),
        ('"<pad>"', '"<pads>"', "in another way"),
    ],
)
def test_a_base_that_is_no_t5_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    place, recipe = Place(tmp_path), _recipe()
    place.walk(recipe, only="text")
    file = place.run / "01-text" / "result" / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(RequestError, match=words):
        place.walk(recipe)


def test_a_base_with_more_tokens_than_its_encoder_is_refused(tmp_path: Path) -> None:
    place, recipe = Place(tmp_path), _recipe()
    place.walk(recipe, only="text")
    tokenizer = place.run / "01-text" / "result" / "tokenizer" / "tokenizer.json"
    table = json.loads(tokenizer.read_text("utf-8"))
    table["model"]["vocab"] += [[f"more{i}", -20.0] for i in range(50)]
    tokenizer.write_text(json.dumps(table), "utf-8")
    with pytest.raises(RequestError, match="more tokens than its encoder"):
        place.walk(recipe)


def test_a_base_with_a_damaged_tokenizer_is_a_sentence(tmp_path: Path) -> None:
    place, recipe = Place(tmp_path), _recipe()
    place.walk(recipe, only="text")
    file = place.run / "01-text" / "result" / "tokenizer" / "tokenizer.json"
    file.write_text("{", "utf-8")
    with pytest.raises(ModelError, match="is not a tokenizer"):
        place.walk(recipe)
