"""Features of pictures from an exported encoder, with timm alone; tokens of inner layers too.

jepa export runs/demo --format timm --out encoder
python docs/examples/encode_with_timm.py encoder a.png b.png
"""

import sys

import timm
import torch
from PIL import Image

folder, *files = sys.argv[1:]
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
with torch.no_grad():
    pooled = model(images)  # (B, D): the mean of the tokens
    inner = model.forward_intermediates(images, indices=[-2], norm=True, output_fmt="NLC", intermediates_only=True)
features = torch.nn.functional.normalize(pooled, dim=-1)
print(f"pooled {tuple(pooled.shape)}, tokens of the last layer but one {tuple(inner[0].shape)}, similarity:")
print((features @ features.T).numpy().round(3))
