"""What the model reads of a prompt, and what is cut."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from pipelines.benchmarks.benchmark import stock_pipeline as stock
from pipelines.catalog import Catalog, Cleaning, ModelSpec
from pipelines.engine import Engine
from pipelines.errors import ModelError
from pipelines.text import seen_words
from pipelines.text.encoder import batch
from pipelines.text.tokens import clean, tokenize
from tests.tiny import NANO

MODEL = Catalog().find("nano")
LONG = (
    "a red apple on a light blue background and a very big castle next to a top hat and a dog face"
    " in front of a yellow backdrop with two small rockets at the left and a tractor at the right"
)


def test_short_prompts_are_read_whole() -> None:
    tokens = tokenize("A  Red Apple", MODEL)
    assert (tokens.kept, tokens.cut) == ("a red apple", "")
    assert tokens.used == len(tokens.ids) <= tokens.limit
    assert tokens.ids[-1] == 1


def test_the_empty_prompt_is_its_end_token() -> None:
    assert tokenize("", MODEL).ids == (1,)


def test_ids_and_cut_equal_the_reference_tokenizer() -> None:
    reference = AutoTokenizer.from_pretrained(NANO / "tokenizer")
    for text in ("a red apple", LONG, LONG * 3):
        expected = reference(text, max_length=MODEL.tokens, truncation=True)["input_ids"]
        tokens = tokenize(text, MODEL)
        assert list(tokens.ids) == expected
        assert tokens.used == len(reference(text, truncation=False, padding=False)["input_ids"])
    tokens = tokenize(LONG, MODEL)
    assert tokens.kept + tokens.cut == LONG
    assert tokenize(tokens.kept, MODEL).ids == tokens.ids
    # Never inside of a word.
    assert tokens.cut.startswith(" ")
    assert len(tokens.kept.split()) > 10


@pytest.mark.parametrize("control", ["</s>", "<pad>", "<extra_id_0>", "<unk>", "</S>"])
def test_control_tokens_typed_by_a_user_are_text(control: str) -> None:
    reserved = {0, 1}
    tokens = tokenize(f"a cat {control} on a{control}mat", MODEL)
    assert not reserved & set(tokens.ids[:-1])
    assert tokens.kept + tokens.cut == f"a cat {control.lower()} on a{control.lower()}mat"
    assert len(tokens.ids) > len(tokenize("a cat on a mat", MODEL).ids)


def test_sentinels_of_a_t5_vocabulary_are_text_too(tmp_path: Path) -> None:
    """The small vocabulary has no <extra_id_0>; the real T5 has a hundred of them."""
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer" / "tokenizer.json"))
    tokenizer.add_special_tokens(["<extra_id_0>"])
    sentinel = tokenizer.token_to_id("<extra_id_0>")
    assert sentinel in tokenizer.encode("a <extra_id_0> cat").ids
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    model = MODEL.model_copy(update={"folder": tmp_path})
    assert sentinel not in tokenize("a <extra_id_0> cat <extra_id_0>", model).ids


@given(st.text(max_size=400), st.sampled_from([None, "lower", "authors"]))
def test_every_text_is_split_without_loss(text: str, cleaning: Cleaning | None) -> None:
    tokens = tokenize(text, MODEL, cleaning)
    assert tokens.kept + tokens.cut == clean(text, cleaning or MODEL.cleaning)
    assert len(tokens.ids) == min(tokens.used, tokens.limit)
    assert 1 not in tokens.ids[:-1]
    assert 0 not in tokens.ids


def test_the_row_of_a_model_says_how_its_text_is_cleaned() -> None:
    trained: ModelSpec = MODEL.model_copy(update={"cleaning": "authors"})
    cleaned = tokenize("A (red) apple, #12", trained)
    assert cleaned.ids == tokenize("a red apple", MODEL).ids != tokenize("a (red)", MODEL).ids
    assert tokenize("A (red) apple, #12", MODEL, "authors") == cleaned
    assert tokenize("(red)", trained, "lower") == tokenize("(red)", MODEL)


def test_hostile_prompts_do_not_hang() -> None:
    started = time.process_time()
    for text in ("</s>" * 2500, "a" * 10_000, "中" * 10_000, "<" * 10_000):
        tokenize(text, MODEL)
    assert time.process_time() - started < 20


def test_a_damaged_tokenizer_is_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(NANO / "tokenizer", folder / "tokenizer")
    model: ModelSpec = MODEL.model_copy(update={"folder": folder})
    file = folder / "tokenizer" / "tokenizer.json"
    whole = file.read_text("utf-8")
    for text in (whole[: len(whole) // 2], "[]", "{}", '{"added_tokens": 3}', "\x00", "null"):
        file.write_text(text, "utf-8")
        with pytest.raises(ModelError, match="tokenizer"):
            tokenize("a cat", model)
    file.write_text(whole, "utf-8")
    assert tokenize("a cat", model).ids == tokenize("a cat", MODEL).ids
    file.unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        tokenize("a cat", model)


def test_features_equal_the_stock_encoder_without_its_padding(engine: Engine) -> None:
    text = engine.load("nano", lambda progress: None).text
    pipe = stock(NANO)
    for prompt in ("", "a red apple", LONG):
        with torch.inference_mode():
            embeds, mask, _, _ = pipe.encode_prompt(
                prompt, False, device="cpu", max_sequence_length=MODEL.tokens
            )
            ours = text.features(prompt)
        assert len(ours) == int(mask.sum())
        assert (ours - embeds[0, : len(ours)]).abs().max() <= 1e-4


def test_the_null_caption_has_its_own_mask(engine: Engine) -> None:
    text = engine.load("nano", lambda progress: None).text
    with torch.inference_mode():
        features = [text.features(prompt) for prompt in ("", "a red apple")]
    # One token, its end; nothing is padded, so nothing needs a mask.
    assert len(features[0]) == 1 < len(features[1])


def test_batching_pads_with_zeros_behind_the_mask() -> None:
    features = batch([torch.ones(2, 3), torch.ones(5, 3)])
    assert features.embeds.shape == (2, 5, 3)
    assert features.embeds[0, 2:].abs().sum() == 0
    assert features.mask.tolist() == [[1, 1, 0, 0, 0], [1] * 5]


@pytest.mark.parametrize("cleaning", [None, "authors"])
@pytest.mark.parametrize("text", ["a \ud800 fox", "\udfff", "<b>a \ud83d</b> é\xa0fox", "&\ud800;"])
def test_half_a_surrogate_pair_is_a_space(text: str, cleaning: Cleaning | None) -> None:
    """The page counts what is typed before a request is made of it; JSON may hold anything."""
    whole = re.sub("[\ud800-\udfff]", " ", text)
    assert tokenize(text, MODEL, cleaning) == tokenize(whole, MODEL, cleaning)
    assert isinstance(seen_words.unseen(text, MODEL), tuple)
