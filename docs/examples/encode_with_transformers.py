"""Features of pictures from an exported encoder, with transformers alone.

jepa export runs/demo --format transformers --out encoder
python docs/examples/encode_with_transformers.py encoder a.png b.png
"""

import sys

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

folder, *files = sys.argv[1:]
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()
images = [Image.open(file).convert("RGB") for file in files]
with torch.no_grad():
    tokens = model(**processor(images, return_tensors="pt")).last_hidden_state  # (B, N, D)
features = torch.nn.functional.normalize(tokens.mean(dim=1), dim=-1)
print(f"{type(model).__name__}: tokens {tuple(tokens.shape)}, similarity of the pictures:")
print((features @ features.T).numpy().round(3))
