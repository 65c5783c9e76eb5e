"""Certified training and certification of whole data sets: what ``lirpa-lip train`` and ``certify`` are made of."""
