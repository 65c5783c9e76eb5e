"""Valid, tight and fast local Lipschitz bounds for auto_LiRPA."""

from lirpa_lip import _compat  # noqa: F401  (must run before anything imports auto_LiRPA)

__version__ = "0.1.0"
