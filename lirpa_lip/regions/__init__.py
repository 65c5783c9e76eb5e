"""The sets of inputs that bounds speak of: balls, boxes, and what they have in common."""
