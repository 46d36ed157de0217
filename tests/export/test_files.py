"""Reading foreign files: nothing in them runs, and what is wrong with one is said."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jepa import cli
from jepa.errors import CheckpointError
from jepa.export import describe, files
from tests.export import official


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o700)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        files.read(path)
    with pytest.raises(CheckpointError):
        describe(path)
    return str(caught.value)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    torch.save({"encoder": {"a": torch.ones(2)}, "extra": Payload(mark)}, tmp_path / "bad.pth")
    message = refusal(tmp_path / "bad.pth")
    assert "refused" in message and "mkdir" in message
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Payload(mark)))
    assert "bare pickle" in refusal(tmp_path / "bare.pkl")
    torch.save({"a": Payload(mark)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    assert "bare pickle" in refusal(tmp_path / "legacy.pth")
    assert not mark.exists()
    with (tmp_path / "bare.pkl").open("rb") as stream:  # the payload is a real one
        pickle.load(stream)
    assert mark.exists()


def test_whole_models_and_numpy_scalars_are_refused_by_name(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "module.pth")
    torch.save({"loss": np.float64(1.0)}, tmp_path / "numpy.pth")
    assert "numpy" in refusal(tmp_path / "numpy.pth")


def test_something_else_than_a_dictionary(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    assert "list" in refusal(tmp_path / "list.pth")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99, 0.999])
def test_truncated_files(tmp_path: Path, share: float) -> None:
    whole = official.write_golden(tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(len(whole) * share)])
    assert "truncated" in refusal(tmp_path / "cut.pth")
    save_file({"a": torch.ones(1000)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: max(9, int(len(whole) * share))])
    assert "truncated" in refusal(tmp_path / "cut.safetensors")


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    assert "0 bytes" in refusal(tmp_path / "empty.pth")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>404</html>")
    assert "neither" in refusal(tmp_path / "page.pth")
    assert "No such file" in refusal(tmp_path / "absent.pth")
    assert "is a folder" in refusal(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not made by torch.save" in refusal(tmp_path / "other.zip")


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    value: object = torch.ones(1)
    for _ in range(40):
        value = {"a": value}
    torch.save(value, tmp_path / "deep.pth")
    assert "nested" in refusal(tmp_path / "deep.pth")


def test_names_are_flattened_and_clashes_refused(tmp_path: Path) -> None:
    torch.save({"a": {"b": torch.ones(1), "c": [1, 2.5, None]}, "d": "text"}, tmp_path / "x.pth")
    foreign = files.read(tmp_path / "x.pth")
    assert list(foreign.tensors) == ["a.b"]
    assert foreign.values == {"a.c.0": 1, "a.c.1": 2.5, "a.c.2": None, "d": "text"}
    torch.save({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, tmp_path / "clash.pth")
    assert "'a.b'" in refusal(tmp_path / "clash.pth")


@pytest.mark.golden("ijepa_forward")
def test_describe_says_what_an_official_file_is(tmp_path: Path) -> None:
    facts = describe(official.write_golden(tmp_path / "IN1K.pth.tar"))
    parts = official.golden_parts()
    assert facts["kind"] == "I-JEPA" and facts["format"] == "torch"
    assert facts["values"]["epoch"] == 300
    assert facts["parts"]["target_encoder"]["parameters"] == sum(t.numel() for t in parts["target"].values())
    assert facts["architecture"]["width"] == parts["target"]["norm.weight"].numel()
    assert "jepa import" in facts["command"]
    save_file({"conv.weight": torch.ones(2, 3)}, tmp_path / "other.safetensors", metadata={"made_by": "me"})
    facts = describe(tmp_path / "other.safetensors")
    assert facts["kind"] == "unknown layout" and facts["metadata"] == {"made_by": "me"}
    assert facts["parts"] == {"conv": {"tensors": 1, "parameters": 6, "dtypes": ["float32"]}}


def test_describe_reads_no_weights(tmp_path: Path) -> None:
    """A file of 4 GB that holds almost nothing on disk: reading its weights would take gigabytes of memory."""
    size = 4 * 2**30
    name = "encoder.patch_embed.proj.weight"
    text = f'{{"{name}":{{"dtype":"F32","shape":[1024,1024,1024],"data_offsets":[0,{size}]}}}}'
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text.encode())
        stream.truncate(8 + len(text) + size)
    before = _resident_mb()
    facts = describe(path)
    assert facts["parts"]["encoder"]["parameters"] == 2**30
    assert "cannot be inferred" in facts["architecture"]
    assert _resident_mb() - before < 500


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.golden("ijepa_forward")
def test_the_command_line_inspects_and_imports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = official.write_golden(tmp_path / "IN1K.pth.tar")
    assert cli.main(["inspect", str(source), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "I-JEPA"
    run = tmp_path / "run"
    assert cli.main(["import", str(source), "--from", "ijepa", "--to", str(run)]) == 2
    assert "method.encoder.heads=N" in capsys.readouterr().err
    assert cli.main(["import", str(source), "--from", "ijepa", "--to", str(run), *official.golden_settings()]) == 0
    assert "optimiser state" in capsys.readouterr().out
    assert cli.main(["inspect", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"]["imported"]["origin"]["epoch"] == 300
