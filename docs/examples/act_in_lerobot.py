"""An exported encoder in LeRobot: frozen backbone of its ACT policy, trained on one of its data sets.

jepa export runs/demo --format transformers --out encoder
pip install lerobot transformers
python docs/examples/act_in_lerobot.py encoder FOLDER_OF_A_LEROBOT_DATASET

Tried with lerobot 0.4.4, which wants an older torch than this package: give it an environment of its own.
"""

import sys

import torch
from lerobot.configs.types import FeatureType, NormalizationMode
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.utils import dataset_to_policy_features
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel


class Backbone(torch.nn.Module):
    """Images (B, 3, H, W) in 0..1 to a feature map, in place of a ResNet."""

    def __init__(self, folder):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder).eval().requires_grad_(False)
        told = AutoImageProcessor.from_pretrained(folder)
        self.size = (told.crop_size["height"], told.crop_size["width"])
        self.register_buffer("mean", torch.tensor(told.image_mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(told.image_std).view(3, 1, 1))

    def forward(self, images):
        x = (F.interpolate(images, self.size, mode="bilinear", antialias=True) - self.mean) / self.std
        grid = self.encoder.embeddings.patch_embeddings.projection(x).shape[2:]
        return {"feature_map": self.encoder(x).last_hidden_state.transpose(1, 2).unflatten(2, grid)}


folder, root, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 100
told = LeRobotDatasetMetadata("local/data", root=root)
data = LeRobotDataset("local/data", root=root, delta_timestamps={"action": [i / told.fps for i in range(10)]})
features = dataset_to_policy_features(told.features)
policy = ACTPolicy(
    ACTConfig(
        input_features={k: f for k, f in features.items() if f.type is not FeatureType.ACTION},
        output_features={k: f for k, f in features.items() if f.type is FeatureType.ACTION},
        normalization_mapping={  # the backbone normalises images as it was trained with
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        },
        pretrained_backbone_weights=None, chunk_size=10, n_action_steps=10, dim_model=128, dim_feedforward=512,
    )
)  # fmt: skip
policy.model.backbone = Backbone(folder)
policy.model.encoder_img_feat_input_proj = torch.nn.Conv2d(policy.model.backbone.encoder.config.hidden_size, 128, 1)
policy.to(policy.config.device).train()
prepare, restore = make_pre_post_processors(policy.config, dataset_stats=told.stats)
optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-4)
for step in range(steps):
    loss, _ = policy(prepare(next(iter(torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)))))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (0, steps - 1):
        print(f"step {step}: loss {loss.item():.3f}")
action = restore(policy.select_action(prepare({k: v for k, v in data[0].items() if k.startswith("observation")})))
print("action:", [round(x, 3) for x in action[0].tolist()])
