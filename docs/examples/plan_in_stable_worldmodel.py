"""An exported encoder in stable-worldmodel: backbone of its PreJEPA (DINO-WM), trained and planning in its World.

jepa export runs/demo --format transformers --out encoder
python docs/examples/plan_in_stable_worldmodel.py encoder
"""

import sys

import stable_worldmodel as swm
import torch
from stable_worldmodel.wm.prejepa.module import CausalPredictor, Embedder
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel


class Backbone(torch.nn.Module):
    """PreJEPA leaves out the first token, a class token, which this encoder does not have."""

    def __init__(self):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder).eval().requires_grad_(False)

    def forward(self, pixels):
        out = self.encoder(pixels)
        out.last_hidden_state = F.pad(out.last_hidden_state, (0, 0, 1, 0))
        return out


def seen(image):
    """One frame, uint8 (3, H, W), as the encoder takes it."""
    return processor(torch.as_tensor(image), return_tensors="pt").pixel_values[0]


folder, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100
processor, backbone = AutoImageProcessor.from_pretrained(folder), Backbone()
size = (processor.crop_size["height"], processor.crop_size["width"])
width, patches = backbone.encoder.config.hidden_size, backbone.encoder.embeddings.position_embeddings.shape[1]

world = swm.World("swm/PushT-v1", num_envs=2, image_shape=size, max_episode_steps=10)
world.set_policy(swm.policy.RandomPolicy(seed=0))
kept = swm.data.ReplayBuffer(10_000, history_len=2, key_filter=lambda e: {k: e[k] for k in ("pixels", "action")})
world.collect(writer=kept, episodes=8, seed=0, progress=False)

predictor = CausalPredictor(num_patches=patches, num_frames=1, dim=width + 8, depth=2, heads=4, mlp_dim=256)
actions = torch.nn.ModuleDict({"action": Embedder(in_chans=2, emb_dim=8)})
model = swm.wm.PreJEPA(backbone, predictor, actions, history_size=1, interpolate_pos_encoding=False)
optimizer = torch.optim.AdamW([*predictor.parameters(), *actions.parameters()], lr=1e-3)
for step in range(steps):
    clip = kept.sample(8)  # pixels (B, 2, H, W, 3), action (B, 2, 2)
    frames = torch.stack([seen(f) for f in torch.from_numpy(clip["pixels"]).permute(0, 1, 4, 2, 3).flatten(0, 1)])
    info = {"pixels": frames.unflatten(0, (-1, 2)), "action": torch.from_numpy(clip["action"])}
    z = model.encode(info)["emb"]  # (B, 2, N, D + 8)
    loss = F.mse_loss(model.predict(z[:, :1])[..., :width], z[:, 1:, :, :width])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (0, steps - 1):
        print(f"step {step}: loss {loss.item():.4f}")

solver = swm.solver.CEMSolver(model.eval(), batch_size=2, num_samples=64, n_steps=3, topk=8)
plan = swm.PlanConfig(horizon=5, receding_horizon=5)
world.set_policy(swm.policy.WorldModelPolicy(solver, plan, transform={"pixels": seen, "goal": seen}))
print(f"success rate: {world.evaluate(episodes=2, seed=1)['success_rate']:.0f} %")
