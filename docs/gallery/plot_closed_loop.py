"""
Region of attraction of a learned controller
============================================

A pendulum, held upright by a small ReLU network. Where the closed loop's local Lipschitz constant is below one it
contracts, and a ball around the upright position on which it does is a certified region of attraction.
"""

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.linalg import solve_discrete_are, solve_discrete_lyapunov, sqrtm
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm

STEP, GRAVITY, DAMPING = 0.1, 4.0, 0.5
A = np.array([[1.0, STEP], [STEP * GRAVITY, 1.0 - STEP * DAMPING]])  # linearised at the top: angle, speed
B = np.array([[0.0], [STEP]])
P = solve_discrete_are(A, B, np.eye(2), np.eye(1))
gain = np.linalg.solve(np.eye(1) + B.T @ P @ B, B.T @ P @ A)

# %%
# The network imitates the optimal linear controller, with a torque that saturates.
torch.manual_seed(0)
states = 4 * torch.rand(4000, 2) - 2
torque = (-states @ torch.tensor(gain, dtype=torch.float32).T).clamp(-8, 8)
control = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.Adam(control.parameters(), lr=0.02)
for _ in range(800):
    optimizer.zero_grad()
    (control(states) - torque).square().mean().backward()
    optimizer.step()


class Loop(nn.Module):
    """One step in coordinates ``M x`` in which the linear loop contracts; the upright position stays where it is."""

    def __init__(self, m):
        super().__init__()
        self.into, self.back = (torch.tensor(t, dtype=torch.float32) for t in (m.T, np.linalg.inv(m).T))
        self.control = control
        self.rest = control(torch.zeros(1, 2)).detach()

    def forward(self, y):
        x = y @ self.back
        angle, speed = x[:, :1], x[:, 1:]
        push = GRAVITY * torch.sin(angle) - DAMPING * speed + self.control(x) - self.rest
        return torch.cat([angle + STEP * speed, speed + STEP * push], dim=1) @ self.into


slope = torch.autograd.functional.jacobian(lambda x: control(x)[0], torch.zeros(1, 2))[0, 0].numpy()
loop_matrix = A + B @ slope.reshape(1, 2)
M = np.real(sqrtm(solve_discrete_lyapunov(loop_matrix.T, np.eye(2))))
loop = Loop(M).eval()

# %%
# The constant over growing balls around the upright position, in these coordinates.
bounded = BoundedModule(loop, torch.zeros(1, 2), bound_opts={"local_lip": LocalLipConfig(certificate="deterministic")})
radii = np.linspace(0.05, 3, 60)
upper, lower = [], []
for radius in radii:
    ball = (BoundedTensor(torch.zeros(1, 2), PerturbationLpNorm(norm=2, eps=float(radius))),)
    found = bounded.local_lipschitz(x=ball)
    upper.append(float(found.upper.detach()))
    lower.append(float(found.lower.detach()))
certified = max((r for r, u in zip(radii, upper) if u < 1), default=0.0)
print(f"contracts on the ball of radius {certified:.2f}: every start inside ends upright ({found.certificate})")

# %%
# Left: the bound, and what search finds. Right: the certified region in angle and speed, with simulated starts on its
# edge.
figure = Figure(figsize=(10, 4), layout="constrained")
curve, plane = figure.subplots(1, 2)
curve.plot(radii, upper, label="certified bound")
curve.plot(radii, np.maximum.accumulate(lower), "--", label="largest rate found inside")
curve.axhline(1, color="black", linewidth=0.8)
curve.axvline(certified, color="#4c9f70", linewidth=0.8)
curve.set(xlabel="radius of the ball", ylabel="Lipschitz constant of one step", title="contracts while below 1")
curve.legend()
turn = np.linspace(0, 2 * np.pi, 200)
edge = certified * np.stack([np.cos(turn), np.sin(turn)], axis=1)
inverse = np.linalg.inv(M).T
plane.fill(*(edge @ inverse).T, color="#4c9f70", alpha=0.3, label="certified region of attraction")
for start in edge[::20]:
    y = torch.tensor(start[None], dtype=torch.float32)
    path = [start @ inverse]
    with torch.no_grad():
        for _ in range(60):
            y = loop(y)
            path.append(y[0].numpy() @ inverse)
    plane.plot(*np.array(path).T, color="#34495e", linewidth=0.8)
plane.plot(0, 0, "k*", label="upright")
plane.set(xlabel="angle (rad)", ylabel="speed (rad/s)", title="angle and speed", ylim=(-1.9, 2.4))
plane.legend(loc="upper right", fontsize=8)
figure
