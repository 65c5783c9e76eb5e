"""Linear maps by kind; import them from :mod:`lirpa_lip.norms.linear_map`."""
