"""``python -m lirpa_lip``, the same as ``lirpa-lip``."""

from lirpa_lip.cli import main

if __name__ == "__main__":
    main(prog_name="lirpa-lip")
