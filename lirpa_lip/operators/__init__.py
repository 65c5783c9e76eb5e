"""How each operator is bounded: traits for the Lipschitz bounds, relaxations for auto_LiRPA."""
