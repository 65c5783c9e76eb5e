"""
Norm solvers: error against time
================================

Local Lipschitz bounds need the norm of the same layer under a mask for every sample. What do solvers reach, in what
time, and from which side?
"""

import time

import torch
from matplotlib.figure import Figure

from lirpa_lip import masked_spectral_norm
from lirpa_lip.norms.linear_map import Conv2dMap

torch.manual_seed(0)
layer = Conv2dMap(torch.randn(16, 8, 3, 3, dtype=torch.float64) / 9, (8, 14, 14), 2, 1)
mask_in = (torch.rand(16, *layer.in_shape) < 0.5).double()  # half of the units eliminated, other ones in each sample
mask_out = (torch.rand(16, *layer.out_shape) < 0.5).double()
exact = masked_spectral_norm(layer, mask_in, mask_out, "cholesky", "deterministic")
print(f"deterministic: within {float((exact.upper / exact.lower - 1).max()):.1e} of the norm")


def measured(method: str, certificate: str, steps: int) -> tuple[float, float]:
    """Processor time in ms, and the largest error over the samples."""
    start = time.process_time()
    generator = torch.Generator().manual_seed(1)
    found = masked_spectral_norm(
        layer, mask_in, mask_out, method, certificate, max_iterations=steps, rtol=1e-12, generator=generator
    )
    return 1000 * (time.process_time() - start), float((found.upper / exact.lower - 1).abs().max())


# %%
# Estimates lie below the norm and bound nothing, however small their error; the probabilistic bound lies above.
steps = [2, 4, 8, 12, 16, 24, 32, 48, 64]
measured("power", "estimate", 2)  # the first call pays for what is loaded
figure = Figure(figsize=(7, 4.2), layout="constrained")
axes = figure.subplots()
for method, certificate, style in (
    ("power", "estimate", "o--"),
    ("lanczos", "estimate", "s--"),
    ("polynomial", "probabilistic", "^-"),
):
    runs = [measured(method, certificate, k) for k in steps]
    axes.semilogy(*zip(*runs), style, label=f"{method} ({certificate})")
axes.set(xlabel="processor time (ms), 16 samples", ylabel="largest relative error", ylim=(1e-9, 10), xlim=(0, None))
axes.set_title("one convolution under 16 masks", fontsize=10)
axes.grid(alpha=0.3)
axes.legend()
figure
