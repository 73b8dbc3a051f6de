"""What comes with a model is data: no code of its own is run, and no weights are unpickled."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from raters.models.generation import load_model
from raters.records import ModelAccessError
from tests.tiny_models import make_model


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "sound")


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def load(model: Path, adapter: Path | None = None) -> Any:
    return load_model(f"hf/{model}", str(model), adapter, "cpu", "float32")


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_code(model: Path, trap: Path) -> None:
    """Put a module into a model's folder that would make a file when it is imported, and name it as the model's own."""
    (model / "own.py").write_text(
        f"from pathlib import Path\nPath({str(trap)!r}).touch()\n"
        "from transformers import PreTrainedConfig as Config, PreTrainedModel as Model\n"
        "from transformers import PreTrainedTokenizerFast as Tokenizer\n"
    )
    change(model / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]})


def test_code_beside_a_known_model_is_not_run(model: Path, tmp_path: Path) -> None:
    add_code(model, tmp_path / "trap")
    load(model)
    assert not (tmp_path / "trap").exists()


def test_a_model_that_needs_code_of_its_own_is_refused(model: Path, tmp_path: Path) -> None:
    add_code(model, tmp_path / "trap")
    change(model / "config.json", model_type="own_kind", architectures=["Model"])
    with pytest.raises(ModelAccessError, match="cannot be loaded") as caught:
        load(model)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trap").exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_refused_unread(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "trap")))
    with pytest.raises(ModelAccessError, match="safetensors"):
        load(model)
    assert not (tmp_path / "trap").exists()


def test_pickled_weights_are_refused_although_they_are_sound(model: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelAccessError, match="safetensors"):
        load(model)


def test_a_pickled_adapter_is_refused_unread(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]})
    )
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "trap")))
    with pytest.raises(ModelAccessError, match=r"adapter .* has no adapter_model\.safetensors"):
        load(model, adapter)
    assert not (tmp_path / "trap").exists()
