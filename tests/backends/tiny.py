"""Tiny real models with a vocabulary of words, not trained, saved where a test wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

_ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "Bert": _ENCODER,
    "Roberta": {**_ENCODER, "type_vocab_size": 1, "pad_token_id": 1},
    "DistilBert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
    },
    "XLNet": {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64, "initializer_range": 0.1},
    "Llama": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    "T5": {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 1,
        "num_heads": 2,
        "decoder_start_token_id": 0,
        "initializer_factor": 1.4,
    },
    "Bart": {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "init_std": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 3,
        "eos_token_id": 1,
        "decoder_start_token_id": 1,
        "forced_eos_token_id": None,
    },
}


def model(family: str, head: str, *, seed: int = 0, **settings: Any) -> Any:  # noqa: ANN401 - no types
    """A model such as `BertForSequenceClassification`, of two layers at the most."""
    torch = pytest.importorskip("torch")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**{**SIZES[family], **settings})
    return getattr(transformers, f"{family}For{head}")(config)


def tokenizer(vocabulary: Sequence[str], *, single: str, pair: str = "", **settings: Any) -> Any:  # noqa: ANN401
    """One token a word or mark; words that are not in the vocabulary are `<unk>`.

    `single` and `pair` say where the special tokens stand, as in `<s> $A </s> $B </s>`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(vocabulary)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair or None,
        special_tokens=[(word, ids[word]) for word in ids if word.startswith("<")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **settings)


def save(folder: Path, *parts: Any) -> Path:  # noqa: ANN401 - as above
    """The folder, with a model and a tokenizer in it."""
    for part in parts:
        part.save_pretrained(folder)
    return folder


def poison(folder: Path, token: int) -> None:
    """Make a word's input vector infinite, so that what reads the word computes NaN."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    tables = ("word_embeddings.weight", "embed_tokens.weight", "shared.weight")
    (name,) = (name for name in weights if name.endswith(tables))
    weights[name][token] = torch.inf
    save_file(weights, path, metadata={"format": "pt"})
