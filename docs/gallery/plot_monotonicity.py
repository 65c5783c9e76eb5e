"""
Monotonicity on a table
=======================

Should a predicted risk rise with the body mass index, whatever else is measured? Bounds of single entries of the
Jacobian decide, patient by patient: ten measurements, progression of diabetes after a year (Efron et al., 2004).
"""

import torch

from lirpa_lip import BoundedModule
from lirpa_lip.jacobian.options import ClarkeOptions
from lirpa_lip.network.graph import build_graph
from lirpa_lip.plots import stacked_shares
from lirpa_lip.regions.region import Region
from lirpa_lip.search.monotonicity import monotone_features
from lirpa_lip.training.tabular import load_table, train_mlp

table = load_table("diabetes")
model, score, held = train_mlp(table, 12, 60, 0)
print(f"R² on held-out patients: {score:.2f}")

# %%
# Around each of twelve held-out patients: the feature in question may be anything, the others move by 5 %.
x = table.x[held[:12]].double()
graph = build_graph(BoundedModule(model, table.x[:1]), torch.float64)
rows = torch.ones(len(x), 1, 1, dtype=torch.float64)
counts = {}
for j, name in enumerate(table.features):
    width = torch.full_like(x, 0.05)
    width[:, j] = 1
    region = Region.box(x, (x - width).clamp(min=0), (x + width).clamp(max=1))
    found = monotone_features(graph, region, rows, [j], ClarkeOptions(time_limit=1.0))
    verdicts = [verdict for ((verdict,),) in found.verdicts()]
    counts[name] = {verdict: verdicts.count(verdict) for verdict in set(verdicts)}

# %%
# "increasing" and "decreasing" are certificates; "neither" was refuted by slopes of both signs; "unknown" is open.
colours = {
    "increasing": "#2a9d8f",
    "decreasing": "#e76f51",
    "constant": "#8d99ae",
    "neither": "#e9c46a",
    "unknown": "#d9d9d9",
}
figure = stacked_shares(counts, colours, "patients")
figure
