"""A small T5 from captions alone: a unigram tokenizer, then span corruption (arXiv 1910.10683).

The decoder exists for the training only; the result is the encoder and the tokenizer. A small
encoder that only fills spans forgets the order of the words; `objective.neighbours` keeps it
(docs/decisions/0012). With `base.text` an encoder goes on, and `objective.keep` holds its features
near what they were for nets that were trained on them.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers import decoders as token_decoders
from torch import nn
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

from pipelines import files
from pipelines.catalog import Cleaning
from pipelines.errors import RequestError, printable
from pipelines.models.loader import quiet
from pipelines.text import seen_words
from pipelines.text.tokens import clean, read_tokenizer
from training.bases import Base
from training.config import RunConfig
from training.data.sources import Sources
from training.data.split import split
from training.loop.draws import full_batches
from training.loop.order import Pick, ReadingOrder
from training.loop.task import Batch, Task
from training.methods.span_loss import IGNORED, PAD, SpanLoss, see_order

END, UNKNOWN = 1, 2
# Raise it when the same captions would give another tokenizer.
_TOKENIZER = "3"
_DECODER_LAYERS = 2
_FIXED = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
SPANS = 8
"""Sentinel tokens for the masked spans of one caption."""
# Of the vocabulary, how much may be whole words; and what a spelled word loses against one.
_WORDS_SHARE = 0.75
_SPELLING = 20.0
_MASKED = 0.3
_SPAN = 2.0
_CLEANING: Cleaning = "lower"
_SENTINELS = [f"<extra_id_{i}>" for i in range(SPANS)]


def train_tokenizer(captions: Sequence[str], vocabulary: int) -> Tokenizer:
    """A unigram tokenizer that ends every text with </s>, as T5's does.

    Frequent words are pieces of their own, whatever the unigram algorithm thinks of them: the
    features of a small encoder can hardly tell things apart whose names are spread over pieces.
    """
    tokenizer = _unigram(captions, vocabulary)
    found = json.loads(tokenizer.to_str())
    pieces = [(piece, score) for piece, score in found["model"]["vocab"]]
    specials, rest = pieces[: 3 + SPANS], pieces[3 + SPANS :]
    # Letters always, so that everything can be spelled; and below every word, so that none is.
    letters = sum(len(piece) == 1 for piece, _ in rest)
    room = vocabulary - len(specials)
    words = _words(tokenizer, captions, min(int(_WORDS_SHARE * vocabulary), room - letters))
    rest = [entry for entry in rest if entry[0] not in words]
    rest = sorted(rest, key=lambda entry: len(entry[0]) > 1)[: room - len(words)]
    spelling = [(piece, score - _SPELLING) for piece, score in rest]
    found["model"]["vocab"] = [*specials, *words.items(), *spelling]
    return Tokenizer.from_str(json.dumps(found))


def _words(tokenizer: Tokenizer, captions: Sequence[str], most: int) -> dict[str, float]:
    """The most frequent words, as pieces with their log-likelihoods."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(caption))
    total = sum(counts.values())
    frequent = [(word, n) for word, n in counts.most_common(max(0, most)) if n > 1]
    return {word: math.log(n / total) for word, n in frequent}


def _unigram(captions: Sequence[str], vocabulary: int) -> Tokenizer:
    """Pieces as the unigram algorithm finds them (arXiv 1804.10959)."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(),
            # "cat," as one token would have to learn again what a cat is.
            pre_tokenizers.Split(Regex("[,:;.!?]"), "isolated"),
        ]
    )
    tokenizer.decoder = token_decoders.Metaspace()
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-+&%/#@*=<>[]_äöüéèñç")
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "</s>", "<unk>", *_SENTINELS],
        unk_token="<unk>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
    )
    return tokenizer


def _kept_tokenizer(folder: Path, captions: Sequence[str], vocabulary: int) -> Tokenizer:
    """The tokenizer of these captions, trained once: the library numbers pieces of equal score
    differently each time, and weights belong to one numbering. Raises RequestError, SaveError."""
    words = "\n".join([_TOKENIZER, str(vocabulary), *captions])
    file = folder / f"{hashlib.sha256(words.encode()).hexdigest()[:16]}.json"
    if not file.is_file():
        try:
            trained = train_tokenizer(captions, vocabulary)
        # The library raises nothing more exact.
        except Exception as error:
            raise RequestError(
                "net.vocabulary",
                f"No tokenizer of {vocabulary} pieces can be made from these captions"
                f" ({printable(error, 100)}).",
                "Choose a larger net.vocabulary.",
            ) from None
        folder.mkdir(parents=True, exist_ok=True)
        files.write(file, trained.to_str().encode())
    return Tokenizer.from_file(str(file))


class Spans:
    """Captions with some spans replaced by sentinels; which ones depends on the pick."""

    def __init__(self, captions: Sequence[str], tokenizer: Tokenizer, limit: int) -> None:
        self._captions = list(captions)
        self._tokenizer = tokenizer
        self._limit = limit
        vocabulary = tokenizer.get_vocab()
        self._sentinels = [vocabulary[name] for name in _SENTINELS]

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, pick: Pick) -> dict[str, Any]:
        """{"source": tokens, "labels": tokens, "whole": tokens, "ids": the caption}."""
        caption = self._captions[pick.index]
        tokens = self._tokenizer.encode(caption).ids[:-1][: self._limit - 1]
        ids, labels = self._corrupt(tokens, random.Random(pick.key))
        return {"source": ids, "labels": labels, "whole": [*tokens, END], "ids": caption[:80]}

    def _corrupt(self, tokens: list[int], dice: random.Random) -> tuple[list[int], list[int]]:
        """About 30 % of the tokens in spans of two on average, at least one token."""
        ids: list[int] = []
        labels: list[int] = []
        place, span = 0, 0
        starts = _MASKED / _SPAN
        must = dice.randrange(len(tokens)) if tokens else -1
        while place < len(tokens):
            if span < SPANS and (dice.random() < starts or (place == must and not labels)):
                length = 1 + (dice.random() < 0.6) + (dice.random() < 0.4)
                sentinel = self._sentinels[span]
                ids.append(sentinel)
                labels += [sentinel, *tokens[place : place + length]]
                place += length
                span += 1
            else:
                ids.append(tokens[place])
                place += 1
        return [*ids, END], [*labels, END]

    def plan(self, batch: int, seed: int) -> ReadingOrder:
        """Shuffled captions in full batches."""
        return lambda epoch: full_batches(len(self), batch, seed, "epoch", epoch)


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Padded to the longest of the batch."""
    padded = {
        name: nn.utils.rnn.pad_sequence(
            [torch.tensor(sample[name]) for sample in samples],
            batch_first=True,
            padding_value=IGNORED if name == "labels" else PAD,
        )
        for name in ("source", "labels", "whole")
    }
    padded["tokens"] = padded.pop("source")
    return {"ids": [sample["ids"] for sample in samples], **padded}


def task(config: RunConfig, sources: Sources) -> Task:
    """The training of a T5 on the captions of the manifest."""
    torch.manual_seed(config.seed)
    learning, held = split(sources.manifest, config.data.held_out, config.seed)
    captions = sorted({clean(c, _CLEANING) for s in learning for c in s.captions})
    other = sorted({clean(c, _CLEANING) for s in held for c in s.captions} - set(captions))
    if not captions:
        raise RequestError("data", "The pictures have no captions to learn from.")
    tokenizer, t5, before = _nets(config, sources, captions)
    words = _seen(captions, sources.base("text"))
    if config.gradient_checkpointing:
        t5.gradient_checkpointing_enable()
    samples = Spans(captions, tokenizer, config.data.tokens)
    if not other and learning:
        sources.tell("No held-out caption is new, so validation reads learned ones.")
    held_out = Spans(other or captions[:64], tokenizer, config.data.tokens)
    count = min(len(held_out), config.validation.pictures)
    batches = [tuple(range(i, min(i + config.batch, count))) for i in range(0, count, config.batch)]
    return Task(
        net=SpanLoss(
            t5,
            neighbours=config.objective.neighbours,
            keep=config.objective.keep,
            before=before,
        ),
        samples=samples,
        held_out=held_out,
        held_out_batches=batches,
        plan=samples.plan(config.batch, config.seed),
        collate=collate,
        publish=lambda folder: _publish(t5, tokenizer, config.data.tokens, folder, words),
        fixed_timesteps=False,
        facts={"captions": len(captions), "tokens": tokenizer.get_vocab_size()},
    )


def _nets(
    config: RunConfig, sources: Sources, captions: Sequence[str]
) -> tuple[Tokenizer, T5ForConditionalGeneration, T5EncoderModel | None]:
    """Tokenizer, T5, and the encoder that it goes on from, if the recipe names one."""
    net = dict(config.net)
    vocabulary = int(net.pop("vocabulary", 2048))  # type: ignore[arg-type]
    base = sources.base("text")
    before = None
    if base is None:
        tokenizer = _kept_tokenizer(sources.cache / "tokenizers", captions, vocabulary)
        t5 = T5ForConditionalGeneration(_shape(tokenizer, net))
    else:
        tokenizer, before = read_tokenizer(base.part("tokenizer")), sources.text_encoder()
        _check(tokenizer, before.config)
        own = before.config.to_dict() | {"num_decoder_layers": _DECODER_LAYERS, **_FIXED}
        t5 = T5ForConditionalGeneration(T5Config(**own | {"is_encoder_decoder": True}))
        t5.encoder.load_state_dict(before.encoder.state_dict())
    if config.objective.neighbours:
        see_order(t5)
    return tokenizer, t5, before


def _seen(captions: Sequence[str], base: Base | None) -> str:
    """The list of words for whoever asks what the encoder knows; empty where nobody can say."""
    if base is None:
        return seen_words.listed(captions)
    before = base.part("tokenizer") / seen_words.WORDS_FILE
    if not before.is_file():
        return ""
    return seen_words.listed([*captions, before.read_text("utf-8", errors="replace")])


def _check(tokenizer: Tokenizer, config: T5Config) -> None:
    """Raises RequestError where a base is no T5 that can go on with its tokenizer."""
    wrong = None
    missing = [name for name in _SENTINELS if tokenizer.token_to_id(name) is None]
    if missing:
        wrong = f"its tokenizer has no {missing[0]}"
    elif max(tokenizer.get_vocab().values()) >= config.vocab_size:
        wrong = "its tokenizer knows more tokens than its encoder"
    elif tokenizer.token_to_id("<pad>") != PAD or tokenizer.encode("").ids != [END]:
        wrong = "its tokenizer pads or ends texts in another way than T5's"
    elif config.relative_attention_num_buckets < 4:
        wrong = "its encoder cannot tell distances apart"
    if wrong is not None:
        raise RequestError(
            "base.text", f"The text encoder cannot go on: {wrong}.", "Name another base.text."
        )


def _shape(tokenizer: Tokenizer, net: Mapping[str, Any]) -> T5Config:
    defaults: dict[str, Any] = {
        "d_model": 256,
        "d_kv": 64,
        "d_ff": 512,
        "num_layers": 3,
        "num_decoder_layers": _DECODER_LAYERS,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
    }
    return T5Config(vocab_size=tokenizer.get_vocab_size(), **(defaults | dict(net) | _FIXED))


@torch.no_grad()
def _publish(
    t5: T5ForConditionalGeneration, tokenizer: Tokenizer, tokens: int, folder: Path, words: str
) -> Mapping[str, Any]:
    """Writes the encoder and the tokenizer as transformers lays them out."""
    config = T5Config(**t5.config.to_dict())
    config.is_encoder_decoder = False
    encoder = T5EncoderModel(config)
    own = t5.state_dict()
    missing = encoder.load_state_dict(
        {name: value for name, value in own.items() if name in encoder.state_dict()}, strict=False
    ).missing_keys
    assert not missing, missing
    with quiet():
        encoder.save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir(exist_ok=True)
    files.write(folder / "tokenizer" / "tokenizer.json", tokenizer.to_str().encode())
    about = {
        "tokenizer_class": "T5Tokenizer",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_ids": 0,
        "model_max_length": tokens,
    }
    data = (json.dumps(about, indent=1) + "\n").encode()
    files.write(folder / "tokenizer" / "tokenizer_config.json", data)
    if words:
        files.write(folder / "tokenizer" / seen_words.WORDS_FILE, words.encode())
    return {"vocabulary": tokenizer.get_vocab_size(), "tokens": tokens}
