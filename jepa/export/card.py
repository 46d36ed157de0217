"""The model card beside an export: what it is, how it is used, what it was trained on, what it cost, how good it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jepa import config
from jepa.checkpoint import folder
from jepa.checkpoint.io import read_state
from jepa.data import Manifest
from jepa.errors import DataError
from jepa.export.subject import Subject
from jepa.export.verify import Check

_LIBRARY = {"transformers": "transformers", "timm": "timm", "onnx": "onnx"}
_USE = {
    "transformers-image": """from transformers import AutoImageProcessor, AutoModel
processor, model = AutoImageProcessor.from_pretrained(FOLDER), AutoModel.from_pretrained(FOLDER)
tokens = model(**processor(image, return_tensors="pt")).last_hidden_state""",
    "transformers-clip": """from transformers import AutoModel, AutoVideoProcessor
processor, model = AutoVideoProcessor.from_pretrained(FOLDER), AutoModel.from_pretrained(FOLDER)
tokens = model.get_vision_features(**processor(frames, return_tensors="pt"))  # frames: (T, 3, H, W) uint8""",
    "timm-image": """import timm
model = timm.create_model("local-dir:" + FOLDER, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
tokens = model.forward_features(transform(image)[None])""",
    "torch": """import torch
encoder = torch.export.load(FOLDER + "/encoder.pt2").module()
tokens, pooled, *_ = encoder(pixels)  # pixels: floats in 0..1""",
    "onnx": """import onnxruntime
encoder = onnxruntime.InferenceSession(FOLDER + "/encoder.onnx")
tokens, pooled, *_ = encoder.run(None, {"pixels": pixels})  # pixels: float32 in 0..1""",
    "safetensors": """from jepa.export.to_safetensors import read
module = read(FOLDER)""",
}
_USE_WORLD = {
    "torch": """import torch
encode, step = (torch.export.load(f"{FOLDER}/{name}.pt2").module() for name in ("encode", "step"))""",
    "onnx": """import onnxruntime
encode, step = (onnxruntime.InferenceSession(f"{FOLDER}/{name}.onnx") for name in ("encode", "step"))""",
    "safetensors": _USE["safetensors"],
}


def text(subject: Subject, form: str, record: dict[str, Any], checks: list[Check], real: str) -> str:
    """README.md of an export; `record` is export.json, `real` says which real inputs it was tried on."""
    run, licence = subject.config, data_licence(subject)
    kind = "clip" if subject.clips else "image"
    use = _USE_WORLD[form] if subject.world else _USE.get(form) or _USE[f"{form}-{kind}"]
    what = "World model" if subject.world else f"Frozen {kind} encoder ({subject.which})"
    head = ["---", f"library_name: {_LIBRARY.get(form, 'jepa')}", "tags: [jepa, self-supervised]"]
    head += ["pipeline_tag: image-feature-extraction"] if kind == "image" else []
    parts = [
        "\n".join([*head, "---"]),
        f"# {run.name}",
        f"{what} of method `{run.method.get('name')}`, {subject.step} training steps, exported by "
        f"jepa {record['versions']['jepa']} for {form} in {subject.asked.dtype}.",
        f"```python\n{use}\n```",
        _preparation(record["preprocessing"]),
        *([_programs(record)] if record["programs"] else []),
        "## Data\n\n" + licence,
        "## Cost\n\n" + _cost(subject),
        "## Probes\n\n" + _probes(_run_folder(subject)),
        "## Checked when it was made\n\n" + "\n".join(f"- {c.line}" for c in checks) + f"\n\nReal inputs: {real}.",
        f"## Configuration\n\n```yaml\n{config.to_yaml(_public(run))}```",
    ]
    return "\n\n".join(parts) + "\n"


def data_licence(subject: Subject) -> str:
    """Name, size and licence of what it was trained on, as the manifests say."""
    lines = []
    for name, source in {"data": subject.config.data, **subject.config.mix}.items():
        try:
            found = Manifest.open(source.path)
        except DataError:
            lines.append(f"- {name}: not here when this was exported; its licence is not known")
            continue
        count = len(found.splits[source.split]) if source.split in found.splits else 0
        lines.append(f"- {found.name}, split {source.split}: {count} {found.media}s. Licence: {found.licence}")
    return "\n".join([*lines, "", "What this licence says of models trained on the data is for the user to judge."])


def _public(run: Any) -> Any:
    """Without folders of the machine that it was trained on."""
    values = config.to_dict(run)
    for source in (values["data"], *values["mix"].values()):
        source["path"] = Path(source["path"]).name
    encoder = values["method"].get("encoder")
    if isinstance(encoder, dict) and encoder.get("path"):
        encoder["path"] = Path(encoder["path"]).name
    return config.build(config.RunConfig, values)


def _preparation(values: dict[str, Any]) -> str:
    height, width = values["image_size"]
    frames = f"{values['frames']} frames, " if values["frames"] else ""
    lines = [
        "## Pixels\n",
        f"{frames}{height} x {width} (height x width): {values['crop']}, resized ({values['interpolation']}, "
        f"antialiased), divided by 255. Mean {values['mean']}, std {values['std']}"
        + (": inside the program." if values["inside"] else ": by the processor, or by you."),
    ]
    if values["clip"]:
        lines.append(f"Frames of a clip in training: `{json.dumps(values['clip'])}`.")
    return "\n".join(lines)


def _programs(record: dict[str, Any]) -> str:
    rows = ["## Programs\n", "| program | takes | gives |", "|---|---|---|"]
    for name, program in record["programs"].items():
        takes, gives = (
            ", ".join(f"{k} {tuple(v)}" for k, v in program[side].items()) for side in ("inputs", "outputs")
        )
        rows.append(f"| {name} | {takes} | {gives} |".replace("'", ""))
    if record["window"]:
        rows.append(f"\nA step looks at {record['window']} frames at most: hand it the newest.")
    return "\n".join(rows)


def _cost(subject: Subject) -> str:
    state = read_state(subject.checkpoint)
    environment = _json(_run_folder(subject) / "environment.json")
    hardware = environment.get("hardware", {})
    machine = hardware.get("gpu") or hardware.get("cpu") or "unknown hardware"
    parts = [f"{subject.step} steps of {subject.config.train.batch} samples"]
    if state.get("device_seconds"):
        parts.append(f"{float(state['device_seconds']) / 3600:.3g} device hours")
    parts.append(f"{environment.get('processes', 1)} process(es), {machine}")
    imported = state.get("imported")
    return f"Imported from {imported['file']} ({imported['layout']})." if imported else ", ".join(parts) + "."


def _probes(run: Path) -> str:
    rows = ["| suite | probe | metric | encoder | value | 95 % interval |", "|---|---|---|---|---|---|"]
    for path in sorted((run / "probes").glob("*.json")):
        for row in _json(path).get("rows", []):
            known = row.keys() >= {"probe", "metric", "encoder", "value", "low", "high"}
            if known:
                interval = f"{row['low']:.4g} to {row['high']:.4g}"
                name = f"{row['encoder']} (baseline)" if row.get("baseline") else row["encoder"]
                rows.append(
                    f"| {path.stem} | {row['probe']} | {row['metric']} | {name} | {row['value']:.4g} | {interval} |"
                )
    return "\n".join(rows) if len(rows) > 2 else "None yet: `jepa probe RUN --suite NAME` before exporting fills this."


def _run_folder(subject: Subject) -> Path:
    parent = subject.checkpoint.parent
    return parent.parent if parent.name == folder.FOLDER else parent


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


__all__ = ["data_licence", "text"]
