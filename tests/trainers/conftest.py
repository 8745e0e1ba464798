"""An export to be read, and models so small that one step of training takes no time.

Each file here needs one trainer, with libraries that do not go with those of the others; it is
skipped where the trainer is not installed.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmrank.api.exporting import export
from tests.trainers import data

Exports = Callable[..., Path]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]")


def pytest_itemcollected(item: pytest.Item) -> None:
    """These import torch; and what other people's libraries warn of is not ours."""
    item.add_marker("slow")
    item.add_marker("local")
    item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture
def exported(tmp_path: Path) -> Exports:
    """Export the small run in a format, into a folder of its own."""
    run = data.write(tmp_path / "run")

    def make(format: str, **options: Any) -> Path:  # noqa: ANN401 - the options of the export
        out = tmp_path / f"exported-{format}"
        export(run, format, out, **options)
        return out

    return make


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Path], Any]:
    """Read a file as the trainers do."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def read(path: Path) -> Any:  # noqa: ANN401 - the library's own
        cache = str(tmp_path / "cache")
        return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)

    return read


def _tokenizer(**settings: Any) -> Any:  # noqa: ANN401 - the library's own
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = [*SPECIAL, *marks, *(f"##{mark}" for mark in marks)]
    words = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        **settings,
    )


@pytest.fixture
def tokenizer() -> Any:  # noqa: ANN401 - as above
    """Pieces of a character each, with the marks of BERT."""
    pytest.importorskip("transformers")
    return _tokenizer()


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """An encoder of two layers, untrained."""
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = _tokenizer(model_max_length=128)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    folder = tmp_path / "bert"
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CHAT = (
    "{% for message in messages %}[unused0]{{ message.role }}: {{ message.content }}[SEP]"
    "{% endfor %}{% if add_generation_prompt %}[unused0]assistant: {% endif %}"
)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A decoder of two layers, untrained, with a chat template."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = _tokenizer(eos_token="[SEP]", bos_token="[CLS]", chat_template=CHAT)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    folder = tmp_path / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
