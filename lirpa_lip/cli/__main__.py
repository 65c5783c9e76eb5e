"""``python -m lirpa_lip.cli``, the same as ``lirpa-lip``; what ``accelerate launch -m`` and ``torchrun -m`` start."""

from lirpa_lip.cli import main

if __name__ == "__main__":
    main(prog_name="lirpa-lip")
