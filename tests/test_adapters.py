"""The files of an adapter: the same for the same weights, and enough to answer with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText

from mmsrarec_ray.adapters import ADAPTER, FACTS, load_base, lora_config, write_result
from mmsrarec_ray.config import Config, load
from mmsrarec_ray.models.load import TINY
from mmsrarec_ray.store import Folder


def written(config: Config, where: Path, base: Path) -> Folder:
    """An adapter with weights that are always the same, learnt for the model in `base`."""
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(base), lora_config(config.tune_summarizer.lora))
    trainer, out = SimpleNamespace(save_model=model.save_pretrained), Folder.at(str(where / "out"))
    write_result(config, trainer, {"steps": 1}, out, where / "scratch", rank=0)
    return out


def test_equal_weights_are_equal_files_wherever_the_model_lay(tmp_path: Path) -> None:
    config = load(None, ["data.format=shop", "run=/nowhere"])
    elsewhere = tmp_path / "another_copy"
    shutil.copytree(TINY, elsewhere)
    here, there = (written(config, tmp_path / base.name, base) for base in (TINY, elsewhere))
    names = here.files()
    assert names == [f"{ADAPTER}/adapter_config.json", f"{ADAPTER}/adapter_model.safetensors", FACTS]
    assert [here.checksum(name) for name in names] == [there.checksum(name) for name in names]
    again = PeftModel.from_pretrained(load_base(config), (here / ADAPTER).path)
    assert again.peft_config["default"].r == config.tune_summarizer.lora.rank
