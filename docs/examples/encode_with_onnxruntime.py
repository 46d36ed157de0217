"""Features of pictures from an exported encoder, with numpy and onnxruntime alone.

jepa export runs/demo --format onnx --out encoder
python docs/examples/encode_with_onnxruntime.py encoder a.png b.png
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder, *files = sys.argv[1:]
height, width = json.loads((Path(folder) / "export.json").read_text())["preprocessing"]["image_size"]
encoder = onnxruntime.InferenceSession(f"{folder}/encoder.onnx")
images = [ImageOps.fit(Image.open(file).convert("RGB"), (width, height), Image.Resampling.BILINEAR) for file in files]
pixels = np.stack([np.asarray(image, np.float32).transpose(2, 0, 1) / 255 for image in images])
tokens, pooled = encoder.run(None, {"pixels": pixels})[:2]  # (B, N, D), (B, D); the normalisation is inside
features = pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)
print(f"tokens {tokens.shape}, similarity of the pictures:")
print((features @ features.T).round(3))
