"""Lets auto_LiRPA 0.3 … 0.7 and torchvision import on current torch and numpy."""
