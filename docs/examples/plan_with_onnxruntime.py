"""A plan by the cross-entropy method from an exported world model, with numpy and onnxruntime alone.

    jepa export runs/demo-world --format onnx --out world
    python docs/examples/plan_with_onnxruntime.py world now.png goal.png

For lewm, and for ac and dinowm without proprioception. Bounds of an action are those of your robot.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

LOW, HIGH, HORIZON, PLANS, BEST, ROUNDS = -1.0, 1.0, 5, 64, 8, 5
folder, *files = sys.argv[1:]
record = json.loads((Path(folder) / "export.json").read_text())
(height, width), window = record["preprocessing"]["image_size"], record["window"]
encode = onnxruntime.InferenceSession(f"{folder}/encode.onnx")
steps = {path.stem: onnxruntime.InferenceSession(path) for path in Path(folder).glob("step*.onnx")}


def seen(file):
    image = Image.open(file).convert("RGB").resize((width, height))
    return encode.run(["latents"], {"frames": np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255})[0]


def imagined(now, plans):
    """The last latents (S, N, D) of plans (S, H, A)."""
    latents = np.repeat(now[:, None], len(plans), axis=0)  # (S, T, N, D): one frame was seen
    for h in range(plans.shape[1]):
        frames, actions = latents[:, -window:], plans[:, max(0, h + 1 - window) : h + 1]
        step = steps.get(f"step_{frames.shape[1]}", steps["step"])
        after = step.run(["next_latents"], {"latents": frames, "actions": actions})[0]
        latents = np.concatenate([latents, after[:, None]], axis=1)
    return latents[:, -1]


now, goal = map(seen, files)
size = record["programs"]["step"]["inputs"]["actions"][-1]
mean, spread, generator = (
    np.zeros((HORIZON, size)),
    np.full((HORIZON, size), (HIGH - LOW) / 2),
    np.random.default_rng(0),
)
for number in range(ROUNDS):
    plans = np.clip(generator.normal(mean, spread, (PLANS, HORIZON, size)), LOW, HIGH).astype(np.float32)
    costs = ((imagined(now, plans) - goal) ** 2).mean(axis=(1, 2))
    best = plans[np.argsort(costs)[:BEST]]
    mean, spread = best.mean(axis=0), best.std(axis=0)
    print(f"round {number}: lowest cost {costs.min():.4g}, mean {costs.mean():.4g}")
print("first action:", mean[0].round(3).tolist())
